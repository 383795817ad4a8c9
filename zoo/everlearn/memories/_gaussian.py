"""Rows as the sums remember them: each class a Gaussian around its mean, all of one shape.

Axes: C classes, K classes with samples, R rows, d features.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt

from everlearn.linalg import add_gram, factor_cholesky
from everlearn.memories import _state
from everlearn.memories._choice import balanced
from everlearn.memories.base import Replayed
from everlearn.shrinkage import oas_shrinkage
from everlearn.sums import Sums

Float = npt.NDArray[np.float64]

REFIT_AFTER: Final = 0.25
"""A covariance serves until this share of the samples behind the sums is newer than it."""
ROUNDING: Final = 1e-12
"""Scatter below this share of the raw second moment is rounding error of its subtraction, not spread."""
FLOOR: Final = 1e-13
"""Least variance relative to the raw trace: keeps the covariance positive definite in float64 whatever its rank."""


class GaussianReplay:
    """Draws z ~ N(m_c, V~): pseudo-replay of SLCA (Zhang et al. 2023, sec. 3.3) with the shared covariance of streaming
    LDA (Hayes & Kanan 2020), so that nothing is kept beside the sums.

        V = (G - sum_c n_c m_c m_c^T) / (n - K)      V~ = (1 - rho) V + rho tr(V)/d I, rho by OAS

    On the grid of the quantised features, whose steps are already alike. The factor of V~ is kept
    until `REFIT_AFTER`; means are always those of now. It belongs to a memory's bytes (3.3 MB more at d = 1280, only
    where rows are drawn), or a stream that was stored in between would meet other rows than one that was not.
    """

    def __init__(self) -> None:
        self._factor_dd: npt.NDArray[np.float32] | None = None
        self._fitted_at = -1

    @property
    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """The state, for a memory's bytes; empty where nothing has been drawn."""
        if self._fitted_at < 0:
            return {}
        factor_dd = np.zeros((0, 0), np.float32) if self._factor_dd is None else self._factor_dd
        packed = [factor_dd[row, : row + 1] for row in range(len(factor_dd))]
        factor = np.concatenate(packed) if packed else np.zeros(0, np.float32)
        return {"fitted_at": np.array([self._fitted_at]), "factor": factor}

    @classmethod
    def restored(cls, arrays: Mapping[str, npt.NDArray[Any]], dim: int) -> Self:
        """What `arrays` were of. Raises ValueError or KeyError for others."""
        replay = cls()
        if "fitted_at" not in arrays:
            return replay
        replay._fitted_at = int(_state.column(arrays, "fitted_at", np.int64, (1,))[0])
        if arrays["factor"].size:
            factor = _state.column(arrays, "factor", np.float32, (dim * (dim + 1) // 2,))
            replay._factor_dd = np.zeros((dim, dim), np.float32)
            replay._factor_dd[np.tril_indices(dim)] = factor
        return replay

    def draw(self, sums: Sums, seen: int, count: int, random: np.random.Generator, *, bits: int) -> Replayed:
        """`count` rows, as many of each class with samples. `seen`: samples integrated so far, to tell the age;
        `bits`: width of an integer, beyond which rows saturate as samples do."""
        count_C = sums.count_C
        class_R, _ = balanced((count_C > 0).astype(np.int64), count, random)
        if not class_R.size:
            return Replayed(quantised_Rd=np.empty((0, sums.dim), np.int16), class_R=class_R)
        if self._fitted_at < 0 or abs(seen - self._fitted_at) >= REFIT_AFTER * float(count_C.sum()):
            self._factor_dd, self._fitted_at = noise_factor(sums), seen
        rows_Rd = (sums.sum_Cd[class_R] / count_C[class_R, None]).astype(np.float32)
        if self._factor_dd is not None:
            rows_Rd += random.standard_normal(rows_Rd.shape, np.float32) @ self._factor_dd.T
        limit = (1 << (bits - 1)) - 1
        quantised_Rd = np.clip(np.rint(rows_Rd), -limit, limit).astype(np.int16)
        return Replayed(quantised_Rd=quantised_Rd, class_R=class_R)


def noise_factor(sums: Sums) -> npt.NDArray[np.float32] | None:
    """L with L L^T = V~, in grid units; None where no class has spread (one sample each, say)."""
    count_C = sums.count_C.astype(np.float64)
    rows = np.flatnonzero(count_C)
    scatter_dd: Float = np.array(sums.gram_lower_dd, order="F")
    raw_trace = float(scatter_dd.trace())
    add_gram(scatter_dd, sums.sum_Cd[rows] / np.sqrt(count_C[rows])[:, None], sign=-1.0)
    freedom = float(count_C.sum()) - rows.size
    trace = float(scatter_dd.trace())
    if freedom <= 0 or trace <= ROUNDING * raw_trace:
        return None
    scatter_dd /= freedom
    trace /= freedom
    diagonal_d = scatter_dd.diagonal()
    squares = 2 * float(np.sum(scatter_dd**2)) - float(np.sum(diagonal_d**2))
    rho = oas_shrinkage(trace, squares, sums.dim, freedom)
    scatter_dd *= 1.0 - rho
    scatter_dd[np.diag_indices_from(scatter_dd)] += max(rho * trace / sums.dim, FLOOR * raw_trace / freedom)
    factor_cholesky(scatter_dd)
    return np.tril(scatter_dd).astype(np.float32)
