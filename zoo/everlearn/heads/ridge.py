"""Plain ridge regression onto one-hot targets: every sample counts alike."""

from __future__ import annotations

from typing import ClassVar, Literal

from everlearn.heads._classes import Moments
from everlearn.heads._ridge import checked_alpha, solve_ridge
from everlearn.heads._targets import solve_sets, solve_values
from everlearn.heads.base import Head
from everlearn.sums import Sums
from everlearn.target_sums import TargetSums
from everlearn.values import FeatureScale, LinearHead, Task


class Ridge(Head):
    """Equal to ridge regression on all samples ever learned (Hoerl & Kennard 1970), penalty by GCV.

    `regularization` is alpha: lambda = alpha * mean eigenvalue of the centred second moment. Use it where the stream's
    class frequencies are those that predictions will meet; a rare class loses to frequent ones. Of samples with several
    labels it gives each label's probability, of a regression the outputs' values (`everlearn.heads._targets`).
    """

    TASKS: ClassVar[frozenset[Task]] = frozenset({"classification", "multilabel", "regression"})

    def __init__(self, *, regularization: Literal["auto"] | float = "auto") -> None:
        super().__init__(regularization=regularization)
        self._alpha = checked_alpha(regularization)

    def solve(self, sums: Sums, scale: FeatureScale, *, hint: float | None = None) -> LinearHead:
        """See Head; `hint` is an earlier alpha: one Cholesky (a fifth of the search's time at d = 1280)."""
        return solve_ridge(Moments.of(sums, scale), balance=0.0, alpha=self._alpha or hint)

    def solve_targets(self, sums: TargetSums, scale: FeatureScale, *, hint: float | None = None) -> LinearHead:
        """See Head."""
        if sums.task == "regression":
            return solve_values(sums, scale, alpha=self._alpha or hint)
        return solve_sets(sums, scale, balanced=False, alpha=self._alpha or hint)
