"""Streams of real digits for tests of gradient learning, and learners for them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import numpy as np
import numpy.typing as npt
import torch
from sklearn.datasets import load_digits

from everlearn.learners.gradient.learner import GradientLearner
from everlearn.learners.gradient.recipe import Recipe
from everlearn.spec.model import Memory
from everlearn.spec.recipe import Loss, Optimizer, Regularizer, Schedule, Training
from everlearn.values import FeatureScale, QuantisedBd

# As a learner's own process has it; more only fight over tensors as small as these.
torch.set_num_threads(1)

DIM = 64
SCALE = FeatureScale(step_d=np.full(DIM, 16 / 2047, np.float32))
"""Of pixels of 0 to 16."""
HELD_OUT = 300
TAIL_DIM = 24

Batch = tuple[QuantisedBd, list[str]]


@cache
def digits() -> tuple[QuantisedBd, npt.NDArray[np.int64]]:
    """All of scikit-learn's, in a fixed order without runs."""
    pixels_Bd, class_B = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(class_B))
    return SCALE.quantise(pixels_Bd[order].astype(np.float32)), class_B[order]


def held_out() -> Batch:
    """Rows that no stream has."""
    quantised_Bd, class_B = digits()
    return quantised_Bd[:HELD_OUT], [str(each) for each in class_B[:HELD_OUT]]


def stream(*, classes: int = 10, at_once: int = 2, rows: int = 32, batches: int | None = None) -> Iterator[Batch]:
    """Class after class, `at_once` together: 0 and 1 first, then 2 and 3 ..."""
    quantised_Bd, class_B = (part[HELD_OUT:] for part in digits())
    given = 0
    for first in range(0, classes, at_once):
        picked = np.flatnonzero((class_B >= first) & (class_B < first + at_once))
        for start in range(0, len(picked), rows):
            if given == batches:
                return
            given += 1
            index = picked[start : start + rows]
            yield quantised_Bd[index], [str(each) for each in class_B[index]]


def recipe(
    *,
    head: str = "linear",
    memory: dict[str, object] | None = None,
    loss: dict[str, object] | None = None,
    regularize: tuple[dict[str, object], ...] = (),
    optimizer: dict[str, object] | None = None,
    schedule: dict[str, object] | None = None,
    **train: object,
) -> Recipe:
    """Of plain options; the defaults are the defaults."""
    return Recipe(
        head=head,
        memory=Memory.model_validate(memory or {"kind": "latents"}),
        loss=Loss.model_validate(loss or {}),
        regularize=tuple(Regularizer.model_validate(each) for each in regularize),
        train=Training(
            optimizer=Optimizer.model_validate(optimizer or {}),
            schedule=Schedule.model_validate(schedule or {}),
            **train,  # type: ignore[arg-type]  # plain options
        ),
    )


class Tail(torch.nn.Sequential):
    """Two blocks with a norm that keeps its statistics, and a dropout that stays off."""

    def __init__(self, dim: int = TAIL_DIM, *, seed: int = 0) -> None:
        random = torch.Generator().manual_seed(seed)
        super().__init__(
            torch.nn.Sequential(torch.nn.Linear(DIM, 32), torch.nn.BatchNorm1d(32), torch.nn.GELU()),
            torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.Linear(32, dim), torch.nn.GELU()),
        )
        with torch.no_grad():
            for parameter in self.parameters():
                if parameter.ndim > 1:
                    parameter.copy_(torch.randn(parameter.shape, generator=random) / parameter.shape[1] ** 0.5)
            self[0][0].weight.div_(8)
            self[0][0].bias.zero_()
            self[1][1].bias.zero_()
        self.eval()


def learner(declared: Recipe, *, tail: torch.nn.Module | None = None, labels: tuple[str, ...] = ()) -> GradientLearner:
    """One that has learned nothing."""
    dim = DIM if tail is None else TAIL_DIM
    return GradientLearner.create(dim=dim, labels=labels, scale=SCALE, recipe=declared, tail=tail)


def accuracy(model: GradientLearner, batch: Batch | None = None, *, tail: torch.nn.Module | None = None) -> float:
    """Of the served head, over the served tail's features."""
    quantised_Bd, labels = batch or held_out()
    features_Bd = SCALE.restore(quantised_Bd)
    if tail is not None:
        tail.load_state_dict(dict(model.tail_state() or {}))
        with torch.no_grad():
            features_Bd = tail.eval()(torch.from_numpy(features_Bd)).numpy()
    head = model.head()
    best_B = head.scores(features_Bd).argmax(axis=1)
    return float(np.mean([head.labels[best] == label for best, label in zip(best_B, labels, strict=True)]))
