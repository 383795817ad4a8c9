"""One release of a gradient learner under differential privacy: all that waited is one batch, and hidden in noise.

Axes: B samples of the release, C classes, n values at the cut.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import numpy as np

from everlearn.errors import InputError
from everlearn.learners.gradient.batches import Competing, Table
from everlearn.privacy.mechanism import SHARES, whole_normals
from everlearn.truth import Truth, single_labels
from everlearn.values import QuantisedBd

if TYPE_CHECKING:
    from everlearn.learners.gradient.learner import GradientLearner
    from everlearn.learners.gradient.private import PrivateGradients

COUNTS_SHARE: Final = SHARES[0]
"""Of a release's budget, for how many samples of each class there were; the rest is the steps'."""


def step_noise(noise: float, steps: int) -> float:
    """z of each of so many steps on the same rows, so that with their counts they are one release of `noise`."""
    return noise * math.sqrt(steps / (1 - COUNTS_SHARE))


def hidden(learner: GradientLearner) -> PrivateGradients | None:
    """What hides rows in the steps of a learner; None where its recipe hides nothing."""
    recipe = learner.recipe
    if not recipe.noise:
        return None
    # Here: Opacus is an extra of its own, and takes a second to import.
    from everlearn.learners.gradient.private import PrivateGradients

    clip, noise = recipe.train.optimizer.clip_norm, step_noise(recipe.noise, recipe.train.steps)
    return PrivateGradients(learner.network, noise=noise, clip=clip)


def release(learner: GradientLearner, quantised_Bn: QuantisedBd, truth: Truth) -> None:
    """Steps on the batch, and how many samples of each class it had, with noise. Neither a loss nor anything else of it
    is told. Raises InputError for a label that is not declared."""
    labels = single_labels(truth)
    if any(label not in learner.table for label in labels):
        raise InputError("a label is not declared; with privacy.tier dp a model learns declared ones alone")
    told = learner.truths.take(truth, learner.table)
    table = Table(quantised_Bn, told, learner.grid_n, len(learner.table))
    # Which classes came would tell of samples: all that are declared compete.
    competing = Competing(np.ones(len(learner.table), np.bool_), learner.device)
    for rows in table.steps(learner.memory, learner.random, replay=0, steps=learner.recipe.train.steps):
        learner.stepper.step(rows, competing)
        learner.served.moved(learner.stepper.done)
    table.close()
    std_C = np.full(len(learner.table), learner.recipe.noise / math.sqrt(COUNTS_SHARE))
    noisy_C = learner.count_C + told.count_C + whole_normals(std_C).astype(np.int64)
    learner.count_C = np.maximum(noisy_C, 0)
    learner.samples += len(labels)
    learner.releases += 1
