"""What a gradient step minimises. One file each, found by its name."""

from __future__ import annotations

import sys

from everlearn import plugins
from everlearn.learners.gradient.losses.base import Loss
from everlearn.spec.recipe import Loss as Declared

FIELD = "spec.loss.kind"


def loss_for(declared: Declared) -> Loss:
    """The loss that a declaration names. Raises SpecError."""
    return plugins.load(sys.modules[__name__], declared.kind, Loss, field=FIELD)(declared)  # type: ignore[type-abstract]  # it returns a concrete one
