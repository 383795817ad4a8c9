"""Going back to before a client came: bit for bit where nobody came after, twice the same, and without rows."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from everlearn.errors import DataLossError, InputError, UnavailableError
from everlearn.learners.gradient import layout
from everlearn.learners.gradient.again import Again
from everlearn.learners.gradient.child import recipe_of
from everlearn.learners.gradient.learner import GradientLearner
from everlearn.learners.rewinding import moment_of, samples_of
from everlearn.learners.trainer import Trainer
from everlearn.memories.base import Origin
from everlearn.memories.latents import Latents
from everlearn.memories.sealing import emptied, seal
from everlearn.spec.composition import learns_again
from everlearn.spec.model import Memory, ModelSpec
from everlearn.values import FeatureScale, QuantisedBd

DIM = 6
SCALE = FeatureScale(step_d=np.full(DIM, 2.0**-6, np.float32))
SOURCE = {"source": "hf://timm/x", "revision": "0" * 40}


def spec_of(recipe: str = "latent_replay", **axes: Any) -> ModelSpec:
    return ModelSpec.model_validate({"backbone": SOURCE, "recipe": recipe, **axes})


RECIPES: dict[str, ModelSpec] = {
    "latents": spec_of(
        memory={"kind": "latents", "capacity": 1000}, train={"optimizer": {"kind": "adamw"}, "ema": 0.9}
    ),
    "der": spec_of("der", memory={"kind": "latents", "capacity": 1000, "logits": True}),
    "herding": spec_of(memory={"kind": "latents", "capacity": 1000, "selection": "herding"}),
    "ewc": spec_of("ewc", memory={"kind": "none"}, head={"kind": "linear"}, regularize=({"kind": "ewc"},)),
}


def batch(number: int, client: str = "") -> tuple[QuantisedBd, list[str]]:
    """Ann's are half as long: codes of other rows are not rounded for hers."""
    random = np.random.default_rng(number)
    label_B = random.integers(0, 3, 8)
    values_Bd = np.eye(DIM)[label_B] * 8 + random.normal(0, 1, (8, DIM))
    values_Bd *= 0.5 if client == "ann" else 1.0
    return SCALE.quantise(values_Bd.astype(np.float32)), [f"c{n}" for n in label_B]


def new(recipe: str) -> GradientLearner:
    return GradientLearner.create(dim=DIM, labels=(), scale=SCALE, recipe=recipe_of(RECIPES[recipe]))


def teach(learner: GradientLearner | Trainer, client: str, *numbers: int) -> None:
    for number in numbers:
        quantised_Bd, labels = batch(number, client)
        origin = Origin(client=client, time_s=float(number))
        (learner.learn if isinstance(learner, GradientLearner) else learner.integrate)(
            quantised_Bd, labels, origin=origin
        )


def again(recipe: str, present: GradientLearner, client: str, before: bytes | None) -> GradientLearner:
    common: dict[str, Any] = {"scale": SCALE, "recipe": recipe_of(RECIPES[recipe])}
    made = Again(
        present,
        client,
        before,
        begin=lambda labels: GradientLearner.create(dim=DIM, labels=labels, **common),
        restore=lambda data: GradientLearner.from_bytes(data, **common),
    )
    while made.left:
        made.relearn(3)
    return made.learner


@pytest.mark.parametrize("recipe", RECIPES)
def test_who_came_last_is_gone_to_the_bit(recipe: str) -> None:
    learner = new(recipe)
    teach(learner, "bob", 0, 1, 2, 3)
    before = learner.to_bytes()
    teach(learner, "ann", 4, 5, 6)
    assert layout.split(learner.to_bytes()).tensors != layout.split(before).tensors
    left = again(recipe, learner, "ann", moment_of(before)).to_bytes()
    # Weights, optimizer, schedule and random state; and the memory, but for means, which are those of what is kept.
    assert (layout.split(left).header, layout.split(left).tensors) == (
        layout.split(before).header,
        layout.split(before).tensors,
    )
    assert (left == before) is (recipe != "herding")


def test_others_who_came_after_are_learned_again_from_what_is_kept() -> None:
    learner, never = new("latents"), new("latents")
    for each in (learner, never):
        teach(each, "bob", 0, 1, 2)
    moment = moment_of(learner.to_bytes())
    assert samples_of(moment) == 24
    teach(learner, "ann", 4)
    teach(learner, "bob", 5)
    teach(learner, "ann", 6)
    teach(learner, "carl", 7)
    left = again("latents", learner, "ann", moment)
    teach(never, "bob", 5)
    teach(never, "carl", 7)
    assert left.samples == never.samples == 40
    # The memory had room for all of them, as int8: what is learned again differs by that rounding alone.
    np.testing.assert_allclose(left.head().weight_dC, never.head().weight_dC, atol=0.02)


def test_control_without_the_moment_it_begins_at_the_pretrained_weights() -> None:
    learner = new("ewc")
    teach(learner, "bob", 0, 1)
    before = learner.to_bytes()
    teach(learner, "ann", 4)
    left = again("ewc", learner, "ann", None)
    assert left.samples == 0  # it keeps nothing of anybody
    assert layout.split(left.to_bytes()).tensors != layout.split(before).tensors


def test_labels_that_came_since_keep_their_places() -> None:
    learner = new("latents")
    teach(learner, "bob", 0)
    moment = moment_of(learner.to_bytes())
    learner.learn(batch(1)[0], ["hers"] * 8, origin=Origin(client="ann", time_s=1.0))
    learner.learn(batch(2)[0], ["later"] * 8, origin=Origin(client="bob", time_s=2.0))
    labels = learner.labels
    left = again("latents", learner, "ann", moment)
    assert left.labels == labels
    assert left.count_C[labels.index("hers")] == 0
    assert left.count_C[labels.index("later")] == 8


@contextmanager
def trainer(recipe: str) -> Iterator[Trainer]:
    made = Trainer(RECIPES[recipe], SCALE)
    try:
        yield made
    finally:
        made.close()


def test_a_process_that_dies_between_is_replaced_by_one_that_comes_to_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    never_killed = new("latents")
    with trainer("latents") as learner:
        for each in (learner, never_killed):
            teach(each, "bob", *range(3))
        state, asked = learner.to_bytes(), list[str]()
        for each in (learner, never_killed):
            teach(each, "ann", 3)
            teach(each, "bob", *range(4, 21))
        ask = learner._ask

        def killed(question: Any) -> Any:
            asked.append(question.told["ask"])
            if asked.count("relearn") == 2:
                assert learner._child is not None
                os.kill(learner._child.pid, signal.SIGKILL)
            return ask(question)

        monkeypatch.setattr(learner, "_ask", killed)
        # What is no earlier moment changes nothing.
        eve = new("latents")
        teach(eve, "eve", *range(30))
        for moment, error in ((moment_of(eve.to_bytes()), InputError), (b"no moment", DataLossError)):
            with pytest.raises(error):
                learner.forget_client("ann", before=moment)
        assert learner.to_bytes() == never_killed.to_bytes()
        assert learner.forget_client("ann", before=moment_of(state)) == 8
        assert asked.count("relearn") == 2
        assert learner.to_bytes() == again("latents", never_killed, "ann", moment_of(state)).to_bytes()


class _Keys:
    def seal(self, client: str, plain: bytes) -> bytes:
        return plain[::-1]

    def unseal(self, client: str, sealed: bytes) -> bytes:
        return sealed[::-1]

    def renew(self, client: str) -> None: ...


@pytest.mark.parametrize("options", [{}, {"selection": "herding"}, {"logits": True}], ids=str)
def test_a_moment_has_no_row_and_no_name(options: dict[str, Any]) -> None:
    memory = Latents.create(DIM, [], Memory(kind="latents", capacity=50, **options))
    for number, client in enumerate(("bob-the-first", "ann-the-second")):
        quantised_Bd, labels = batch(number)
        memory.integrate(quantised_Bd, labels, origin=Origin(client=client, time_s=1.0))
    found = emptied(memory.to_bytes())
    assert found == emptied(seal(memory.to_bytes(), _Keys()))
    assert b"bob-the-first" not in found
    left = Latents.from_bytes(found)
    assert (left.kept, left.seen_C.tolist(), left.labels) == (0, memory.seen_C.tolist(), memory.labels)
    left.take_back(memory)
    assert left.sums.to_bytes() == memory.sums.to_bytes()
    assert len(found) < len(memory.to_bytes()) - 16 * DIM


def test_only_what_can_learn_again_keeps_moments() -> None:
    assert all(learns_again(spec) for spec in RECIPES.values())
    assert not learns_again(spec_of("analytic"))
    assert not learns_again(spec_of("lwf", memory={"kind": "statistics"}))


def test_a_trainer_that_is_closed_meanwhile_begins_no_other_process(monkeypatch: pytest.MonkeyPatch) -> None:
    with trainer("latents") as learner:
        teach(learner, "bob", 0)
        ask = learner._ask

        def closed(question: Any) -> Any:
            if question.told["ask"] == "relearn":
                learner.close()
            return ask(question)

        monkeypatch.setattr(learner, "_ask", closed)
        with pytest.raises(UnavailableError, match="closed"):
            learner.forget_client("ann")
        assert learner._child is None
