"""Everything that a gradient learner is, as one value: to write, and to go back to where a call must not count."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from everlearn.errors import DataLossError, InputError, InvalidError
from everlearn.labels import Labels
from everlearn.learners.gradient import optimizers
from everlearn.learners.gradient.recipe import Recipe
from everlearn.learners.gradient.state import State
from everlearn.regularizers import regularizer_for
from everlearn.values import FeatureScale

if TYPE_CHECKING:
    from everlearn.learners.gradient.learner import GradientLearner


_FIELDS: Final = {"scale": "scale", "task": "spec.task"}


def capture(learner: GradientLearner, *, memory: bytes | None = None) -> State:
    """The state now: live tensors, valid until the next step; `copied` makes them last.

    With the memory's bytes it is whole; without, it is what a call can change.
    """
    stepper = learner.stepper
    weights = learner.network.moving() if memory is None else learner.network.moved()
    tensors = {f"weights.{name}": value.detach() for name, value in weights}
    kept = optimizers.state_of(stepper.optimizer, learner.network)
    tensors |= {f"optimizer.{name}": value for name, value in kept.items()}
    for regularizer in learner.regularizers:
        tensors |= {f"regularizer.{regularizer.declared.kind}.{key}": it for key, it in regularizer.state().items()}
    tensors |= learner.served.tensors()
    tensors["drops"] = learner.draws.random.get_state()
    header: dict[str, Any] = {
        **learner.recipe.kinds(),
        "optimizer": learner.recipe.train.optimizer.kind,
        "dim": learner.network.top.weight.shape[1],
        "scale": learner.scale_digest,
        "labels": learner.labels,
        "counts": learner.count_C.tolist(),
        "samples": learner.samples,
        "steps": stepper.done,
        "shares": stepper.share_C.tolist(),
        "refused": learner.refused,
        **({"releases": learner.releases} if learner.releases else {}),
        "random": learner.random.bit_generator.state,
        "patience": learner.patience.numbers(),
        "served": learner.served.numbers(),
    }
    return State(tensors=tensors, header=header, memory=memory or b"")


def copied(state: State) -> State:
    """One that later steps leave as it is."""
    # What is listed is a copy already, or is replaced and never written.
    lasting = ("regularizer.", "soup.", "drops")
    tensors = {name: value if name.startswith(lasting) else value.clone() for name, value in state.tensors.items()}
    return State(tensors=tensors, header=state.header)


def check(state: State, recipe: Recipe, scale: FeatureScale) -> None:
    """Raises InvalidError where the state is of another head, memory or feature scale: it would mean nothing here."""
    for key, value in {**recipe.kinds(), "scale": scale.digest}.items():
        stored = state.header.get(key)
        if stored != value:
            field = _FIELDS.get(key, f"spec.{key}.kind")
            raise InvalidError(f"the stored learner has {key} {stored!r}, not {value!r}", field=field)


def restore(learner: GradientLearner, state: State) -> None:
    """Puts a learner where `capture` found it. Raises DataLossError for a state that contradicts itself."""
    header, device = state.header, learner.device
    try:
        learner.network.load(state.part("weights."))
        learner.stepper.renew()
        if header["optimizer"] == learner.recipe.train.optimizer.kind:
            optimizers.restore(learner.stepper.optimizer, learner.network, state.part("optimizer."))
        for place, regularizer in enumerate(learner.regularizers):
            # Anew, because one that had nothing yet has no state to take up.
            fresh = learner.regularizers[place] = regularizer_for(regularizer.declared, regularizer.task)
            kept = state.part(f"regularizer.{fresh.declared.kind}.")
            if kept:
                fresh.restore(_on(kept, device))
        learner.served.restore(_on(state.part("ema."), device), _on(state.part("soup."), device), header["served"])
        drops = state.tensors["drops"].cpu()
        # A GPU's generator is of another kind than a CPU's: who changes over draws anew from the seed.
        if len(drops) == len(learner.draws.random.get_state()):
            learner.draws.random.set_state(drops)
        learner.table = Labels(header["labels"])
        learner.count_C = np.array(header["counts"], np.int64)
        learner.samples = int(header.get("samples", learner.count_C.sum()))  # an earlier release wrote counts alone
        learner.stepper.done = int(header["steps"])
        learner.stepper.share_C = np.array(header["shares"], np.float64)
        learner.refused = int(header["refused"])
        learner.releases = int(header.get("releases", 0))
        learner.random.bit_generator.state = header["random"]
        learner.patience.restore(header["patience"])
    except (KeyError, TypeError, ValueError, IndexError, RuntimeError, InputError) as error:
        raise DataLossError(f"a stored learner that contradicts itself: {error!r}") from error
    if not learner.network.classes == len(learner.table) == len(learner.count_C):
        raise DataLossError(f"a stored learner of {learner.network.classes} rows and {len(learner.table)} labels")


def _on(tensors: dict[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    return {name: value.to(device) for name, value in tensors.items()}
