"""Heads as 8 bits hold them, where devices get them so: what answers on the server is then what answers there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from everlearn.export.int8 import rounded
from everlearn.learners.base import Learned, Solution


class Rounded(Learned):
    """Another's state of one moment, whose head's weights are steps of 8 bits."""

    def __init__(self, inner: Learned) -> None:
        self._inner = inner

    @property
    def labels(self) -> Sequence[str]:
        """See Learned."""
        return self._inner.labels

    @property
    def count_C(self) -> npt.NDArray[np.int64]:  # noqa: N802  # axes
        """See Learned."""
        return self._inner.count_C

    @property
    def figures(self) -> Mapping[str, float]:
        """See Learned."""
        return self._inner.figures

    def digest(self) -> str:
        """See Learned."""
        return self._inner.digest()

    def solve(self, *, hint: float | None = None) -> Solution:
        """See Learned."""
        solution = self._inner.solve(hint=hint)
        return replace(solution, head=rounded(solution.head))
