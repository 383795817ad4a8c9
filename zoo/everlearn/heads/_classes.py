"""What every head starts from and ends with: the learned classes' moments in, a `LinearHead` in label order out.

Classes stand in sorted order here, and those without samples are left out, so that a head's bits depend neither on the
order in which labels arrived nor on what was only declared.

Axes: K learned classes (sorted by label), C all classes (order of arrival), d features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from everlearn.errors import InvalidError, PreconditionError
from everlearn.linalg import add_gram
from everlearn.sums import Sums
from everlearn.values import NEVER, FeatureScale, LinearHead

Float = npt.NDArray[np.float64]

ROUNDING: Final = 1e-12
"""Scatter below this share of the raw second moment is rounding error of its subtraction, not spread."""


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Moments of the learned classes in units of features (integer * step), float64."""

    labels: tuple[str, ...]
    """All, in order of arrival."""
    column_K: npt.NDArray[np.intp]
    """Index of each learned class in `labels`."""
    count_K: Float
    mean_Kd: Float
    step_d: Float
    sums: Sums

    @property
    def samples(self) -> float:
        """n."""
        return float(self.count_K.sum())

    @property
    def dim(self) -> int:
        """d."""
        return len(self.step_d)

    @classmethod
    def of(cls, sums: Sums, scale: FeatureScale) -> Moments:
        """Raises PreconditionError (reason EMPTY_MEMORY) where no sample has been learned."""
        labels, count_C = sums.labels, sums.count_C
        if scale.step_d.shape != (sums.dim,):
            raise InvalidError(f"the scale has {scale.step_d.size} steps; the sums have {sums.dim} features")
        column_K = np.array(sorted(np.flatnonzero(count_C), key=labels.__getitem__), np.intp)
        if not column_K.size:
            raise PreconditionError("no sample has been learned; stream some first", reason="EMPTY_MEMORY")
        step_d = scale.step_d.astype(np.float64)
        count_K = count_C[column_K].astype(np.float64)
        return cls(
            labels=tuple(labels),
            column_K=column_K,
            count_K=count_K,
            mean_Kd=sums.sum_Cd[column_K] * step_d / count_K[:, None],
            step_d=step_d,
            sums=sums,
        )

    def scatter(self) -> tuple[Float, float]:
        """Scatter within classes, G - sum_c n_c m_c m_c^T, and the trace of G.

        The scatter is a fresh lower triangle, column-major. The trace is the size to judge rounding errors against.
        """
        gram_dd = self.sums.gram_lower_dd * self.step_d  # as its factor, column-major
        gram_dd *= self.step_d[:, None]
        raw_trace = float(gram_dd.trace())
        return add_outer(gram_dd, self.mean_Kd, -self.count_K), raw_trace

    def linear(
        self, weight_dK: Float, bias_K: Float | float, *, regularization: float, normalise: bool = False
    ) -> LinearHead:
        """The classifier over all classes; one without samples never wins."""
        weight_dC = np.zeros((self.dim, len(self.labels)), np.float32)
        bias_C = np.full(len(self.labels), NEVER, np.float32)
        weight_dC[:, self.column_K] = weight_dK
        bias_C[self.column_K] = bias_K
        return LinearHead(
            weight_dC=weight_dC,
            bias_C=bias_C,
            normalise=normalise,
            labels=self.labels,
            regularization=regularization,
        )


def add_outer(target_dd: Float, rows_Kd: Float, weight_K: Float) -> Float:
    """target + sum_k weight_k row_k row_k^T on the lower triangle, in place; all weights of one sign."""
    sign = -1.0 if weight_K[0] < 0 else 1.0
    scaled_Kd = np.sqrt(np.abs(weight_K))[:, None] * rows_Kd
    add_gram(target_dd, scaled_Kd, sign=sign)
    return target_dd
