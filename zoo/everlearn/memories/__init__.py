"""Memories: what is kept of a stream of features. One file each, found by its name."""

from __future__ import annotations

import sys

from everlearn import plugins
from everlearn.memories.base import Memory

FIELD = "spec.memory.kind"
NOT_KINDS = frozenset({"sealing"})
"""What memories share and others use too."""


def memory_for(kind: str) -> type[Memory]:
    """The memory that a declaration names; make one with `create` or `from_bytes`. Raises SpecError.

    >>> memory_for("statistics").__name__
    'Statistics'
    """
    return plugins.load(sys.modules[__name__], kind, Memory, field=FIELD)  # type: ignore[type-abstract]  # it returns a concrete one
