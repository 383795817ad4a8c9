"""What was learned by gradient steps, as a value.

Axes: C classes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from everlearn.errors import PreconditionError
from everlearn.learners.base import Learned, Solution


class LearnedWeights(Learned):
    """Weights of one moment."""

    def __init__(
        self,
        labels: Sequence[str],
        count_C: npt.NDArray[np.int64],
        samples: int,
        solution: Solution | None,
        figures: Mapping[str, float],
    ) -> None:
        self._labels = labels
        self._count_C = count_C
        self._samples = samples
        self._solution = solution
        self._figures = figures

    @property
    def labels(self) -> Sequence[str]:
        """See Learned."""
        return self._labels

    @property
    def count_C(self) -> npt.NDArray[np.int64]:  # noqa: N802  # axes
        """See Learned."""
        return self._count_C

    @property
    def samples(self) -> int:
        """See Learned."""
        return self._samples

    @property
    def figures(self) -> Mapping[str, float]:
        """See Learned."""
        return self._figures

    def digest(self) -> str:
        """See Learned."""
        state = hashlib.sha256(json.dumps([list(self._labels), self._count_C.tolist()]).encode())
        if self._solution is not None:
            head, tail = self._solution.head, self._solution.tail
            state.update(head.weight_dC.tobytes("C") + head.bias_C.tobytes())
            state.update(tail.digest.encode() if tail is not None else b"")
        return state.hexdigest()

    def solve(self, *, hint: float | None = None) -> Solution:
        """See Learned. There is nothing to search: the weights are the classifier."""
        if self._solution is None:
            raise PreconditionError("no sample has been learned; stream some first", reason="EMPTY_MEMORY")
        return self._solution
