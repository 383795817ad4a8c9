"""Heads: pure functions of the sums. One file each, found by its name."""

from __future__ import annotations

import sys
from typing import Literal

from everlearn import plugins
from everlearn.heads.base import Head

FIELD = "spec.head.kind"


def head_for(kind: str, regularization: Literal["auto"] | float = "auto") -> Head:
    """The head that a declaration names.

    Raises SpecError for an unknown kind or a regularization that this kind does not take.

    >>> type(head_for("lda")).__name__
    'Lda'
    """
    return plugins.load(sys.modules[__name__], kind, Head, field=FIELD)(regularization=regularization)  # type: ignore[type-abstract]  # it returns a concrete one
