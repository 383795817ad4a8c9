"""What another has learned, seen through something that changes its heads alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from everlearn.learners.base import Learned


class LearnedAround(Learned):
    """Another's state of one moment; who inherits says how heads are solved."""

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
