"""Blocks of a backbone as they learn: opened as a declaration says, and fitted in a first session.

Axes: N samples, n values at the cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import safetensors.numpy
import torch

from everlearn.backbones.probes import feature_scale
from everlearn.backbones.tail import Tail
from everlearn.learners.gradient.adapts import adapt_for
from everlearn.learners.gradient.learner import GradientLearner
from everlearn.learners.gradient.recipe import Recipe
from everlearn.spec.model import ModelSpec
from everlearn.spec.recipe import Loss, Optimizer, Schedule, Training
from everlearn.values import FeaturesBd

ROWS: Final = 32
"""Samples of a step."""


def adapted(tail: Tail, spec: ModelSpec) -> torch.nn.Module:
    """The tail's module, of which that learns what the declaration says."""
    # Here: most models have no tail, and need none of what builds one.
    from everlearn.backbones.tail_torch import build_tail_module

    module = build_tail_module(tail)
    adapt_for(spec).open(module)
    return module


def fitted(tail: Tail, spec: ModelSpec, values_Nn: FeaturesBd, labels: Sequence[str], *, device: str) -> bytes:
    """The blocks' weights as safetensors after some epochs of cross-entropy on these samples, in an order drawn anew
    for each (First Session Adaptation, Panos 2023, section 4).

    Raises PreconditionError (reason NOT_FINITE) where that diverges.
    """
    from everlearn.backbones.tail_torch import weights_of

    epochs = spec.adapt.epochs or 1
    module = adapted(tail, spec)
    scale = feature_scale(values_Nn, 16, tail.channels)
    learner = GradientLearner.create(
        dim=tail.feature_dim,
        labels=list(dict.fromkeys(labels)),
        scale=scale,
        recipe=session_recipe(len(labels), epochs),
        tail=module,
        device=device,
    )
    quantised_Nn, names = scale.quantise(values_Nn), np.array(labels)
    random = np.random.default_rng(0)
    for _ in range(epochs):
        order_N = random.permutation(len(names))
        for at in range(0, len(order_N), ROWS):
            rows = order_N[at : at + ROWS]
            learner.learn(quantised_Nn[rows], names[rows].tolist())
    state = learner.tail_state()
    assert state is not None
    module.load_state_dict(state)
    found = weights_of(module)
    # Contiguous: what has another layout (channels last) would be written in the order in which it lies in memory.
    return safetensors.numpy.save({name: np.ascontiguousarray(found[name]) for name in sorted(tail.arrays)})


def session_recipe(samples: int, epochs: int) -> Recipe:
    """Short and careful: a small rate that rises, then falls to nothing, and soft labels."""
    steps = max(1, -(-samples // ROWS) * epochs)
    return Recipe(
        loss=Loss(label_smoothing=0.1),
        train=Training(
            steps=1,
            replay=0,
            optimizer=Optimizer(kind="adamw", learning_rate=1e-3, weight_decay=0.01),
            schedule=Schedule(kind="cosine", warmup_steps=max(1, steps // 20), total_steps=steps),
        ),
    )
