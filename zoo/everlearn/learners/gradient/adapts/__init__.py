"""Which weights of a backbone move. One file each, found by its name."""

from __future__ import annotations

import sys

from everlearn import plugins
from everlearn.learners.gradient.adapts.base import Adapt
from everlearn.spec.model import ModelSpec

FIELD = "spec.adapt.kind"


def adapt_for(spec: ModelSpec) -> Adapt:
    """What a declaration lets move of its tail. Raises SpecError."""
    kind = plugins.load(sys.modules[__name__], spec.adapt.kind, Adapt, field=FIELD)  # type: ignore[type-abstract]  # it returns a concrete one
    return kind(spec.adapt, seed=spec.train.seed if spec.train is not None else 0)
