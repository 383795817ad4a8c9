"""Shows of what has been learned only the classes that enough samples are behind: what a tier `aggregate` serves.

Axes: C all classes, K those that are shown, d features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

import numpy as np
import numpy.typing as npt

from everlearn.errors import PreconditionError
from everlearn.learners.base import Learned, Solution

REASON: Final = "BELOW_MINIMUM"
"""Of the PreconditionError where nothing may be shown yet."""


class Masked(Learned):
    """Another's state of one moment without its classes of fewer than `least` samples.

    The head is solved from all that was learned; columns of classes below the minimum are then left out, so that they
    are neither listed nor predicted. (Of a regression each sample tells of every output: there it is all of them, or
    no head yet.)
    """

    def __init__(self, inner: Learned, least: int) -> None:
        self.inner = inner
        self.least = least
        self._shown_K = np.flatnonzero(inner.count_C >= least)

    @property
    def labels(self) -> Sequence[str]:
        """See Learned; of those that are shown."""
        labels = self.inner.labels
        return [labels[int(index)] for index in self._shown_K]

    @property
    def count_C(self) -> npt.NDArray[np.int64]:  # noqa: N802  # axes
        """See Learned; of those that are shown."""
        return self.inner.count_C[self._shown_K]

    @property
    def samples(self) -> int:
        """See Learned; of all classes, those that are not shown included."""
        return self.inner.samples

    @property
    def figures(self) -> Mapping[str, float]:
        """See Learned."""
        return self.inner.figures

    def digest(self) -> str:
        """See Learned."""
        return self.inner.digest()

    def solve(self, *, hint: float | None = None) -> Solution:
        """See Learned. Raises PreconditionError (reason BELOW_MINIMUM) too, where no class may be shown yet."""
        solution = self.inner.solve(hint=hint)
        head, shown_K = solution.head, self._shown_K
        if not shown_K.size:
            what = "outputs are" if head.task == "regression" else "class is"
            raise PreconditionError(
                f"no {what} served below {self.least} samples (privacy.min_class_samples); stream more", reason=REASON
            )
        if len(shown_K) == len(head.labels):
            return solution
        shown = replace(
            head,
            weight_dC=np.ascontiguousarray(head.weight_dC[:, shown_K]),
            bias_C=head.bias_C[shown_K],
            labels=tuple(head.labels[index] for index in shown_K),
            novelty=head.novelty.over(shown_K) if head.novelty is not None else None,
        )
        return replace(solution, head=shown)
