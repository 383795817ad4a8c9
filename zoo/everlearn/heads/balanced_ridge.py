"""Ridge regression in which every class counts alike, however many samples it has: the default head."""

from __future__ import annotations

from typing import ClassVar, Literal

from everlearn.heads._classes import Moments
from everlearn.heads._ridge import checked_alpha, solve_ridge
from everlearn.heads._targets import solve_sets
from everlearn.heads.base import Head
from everlearn.sums import Sums
from everlearn.target_sums import TargetSums
from everlearn.values import FeatureScale, LinearHead, Task


class BalancedRidge(Head):
    """Class-balanced ridge from the same sums as plain ridge, penalty by GCV.

    A stream shows classes in blocks and in long tails; frequencies so far say little about what will be asked. Equal
    to plain ridge where classes are of equal size. `regularization` is alpha: lambda = alpha * mean eigenvalue of the
    balanced, centred second moment. Equations and sources: `everlearn.heads._ridge`.

    Of samples with several labels, having a label counts as likely as not: rare labels are found more often, and
    announced more often than they are right (`ridge` gives probabilities as frequent as the labels are).
    """

    TASKS: ClassVar[frozenset[Task]] = frozenset({"classification", "multilabel"})

    def __init__(self, *, regularization: Literal["auto"] | float = "auto") -> None:
        super().__init__(regularization=regularization)
        self._alpha = checked_alpha(regularization)

    def solve(self, sums: Sums, scale: FeatureScale, *, hint: float | None = None) -> LinearHead:
        """See Head; `hint` is an earlier alpha: one Cholesky (a fifth of the search's time at d = 1280)."""
        return solve_ridge(Moments.of(sums, scale), balance=1.0, alpha=self._alpha or hint)

    def solve_targets(self, sums: TargetSums, scale: FeatureScale, *, hint: float | None = None) -> LinearHead:
        """See Head; of labels only."""
        if sums.task == "regression":
            return super().solve_targets(sums, scale, hint=hint)
        return solve_sets(sums, scale, balanced=True, alpha=self._alpha or hint)
