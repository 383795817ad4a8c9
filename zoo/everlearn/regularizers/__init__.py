"""Regularisers: penalties on what would be forgotten. One file each, found by its name. They need torch."""

from __future__ import annotations

import sys

from everlearn import plugins
from everlearn.regularizers.base import Regularizer
from everlearn.spec.recipe import Regularizer as Declared
from everlearn.values import Task

FIELD = "spec.regularize.kind"


def regularizer_for(declared: Declared, task: Task = "classification") -> Regularizer:
    """The penalty that a declaration names, with nothing consolidated yet. `task`: what the scores are of.

    Raises SpecError for a kind that has no file here.

    >>> type(regularizer_for(Declared(kind="si"))).__name__
    'Si'
    """
    return plugins.load(sys.modules[__name__], declared.kind, Regularizer, field=FIELD)(declared, task)  # type: ignore[type-abstract]  # it returns a concrete one
