"""Heads as 8 bits hold them, where devices get them so: what answers on the server is then what answers there."""

from __future__ import annotations

from dataclasses import replace

from everlearn.export.int8 import rounded
from everlearn.learners._around import LearnedAround
from everlearn.learners.base import Solution


class Rounded(LearnedAround):
    """Another's state of one moment, whose head's weights are steps of 8 bits."""

    def solve(self, *, hint: float | None = None) -> Solution:
        """See Learned."""
        solution = self._inner.solve(hint=hint)
        return replace(solution, head=rounded(solution.head))
