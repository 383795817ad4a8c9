"""Linear discriminant analysis: the best head for classes that are Gaussian clouds of one shape."""

from __future__ import annotations

from typing import Literal

import numpy as np

from everlearn.errors import SpecError
from everlearn.heads._classes import ROUNDING, Moments
from everlearn.heads._ridge import FLOOR, solve_spd
from everlearn.heads.base import Head
from everlearn.shrinkage import oas_shrinkage
from everlearn.sums import Sums
from everlearn.values import FeatureScale, LinearHead

RHO_RANGE = (1e-6, 1.0)
"""What a declaration may fix."""


class Lda(Head):
    """Streaming LDA (Hayes & Kanan 2020) with one pooled covariance, shrunk towards a sphere.

        V = scatter within classes / (n - K)      V~ = (1 - rho) V + rho tr(V)/d I
        W_c = V~^-1 (m_c - m)                     b_c = -1/2 (m_c + m)^T W_c

    with m the mean of the class means, which moves all scores of a sample alike and keeps them small. Classes are
    taken as equally likely. `regularization` is rho; `auto` is OAS. A search costs nothing here, so `hint` is unused.
    """

    def __init__(self, *, regularization: Literal["auto"] | float = "auto") -> None:
        super().__init__(regularization=regularization)
        low, high = RHO_RANGE
        if regularization != "auto" and not low <= regularization <= high:
            raise SpecError(
                f"regularization is {regularization}; lda takes 'auto' or a number from {low} to {high}",
                field="spec.head.regularization",
            )

    def solve(self, sums: Sums, scale: FeatureScale, *, hint: float | None = None) -> LinearHead:
        """See Head."""
        moments = Moments.of(sums, scale)
        mean_d = moments.mean_Kd.mean(axis=0)
        centred_dK = np.asfortranarray((moments.mean_Kd - mean_d).T)
        covariance_dd, raw_trace = moments.scatter()
        trace = float(covariance_dd.trace())
        if trace <= ROUNDING * raw_trace:
            # No spread within classes (one sample each, say): the sphere, which is the nearest mean.
            rho, variance = 1.0, float(np.mean(centred_dK**2))
            weight_dK = centred_dK / variance if variance > 0 else centred_dK
        else:
            freedom = max(moments.samples - moments.count_K.size, 1.0)
            covariance_dd /= freedom
            trace /= freedom
            rho = self._rho(
                trace,
                2 * float(np.sum(covariance_dd**2)) - float(np.sum(covariance_dd.diagonal() ** 2)),
                moments.dim,
                freedom,
            )
            covariance_dd *= 1.0 - rho
            floor = FLOOR * raw_trace / freedom
            weight_dK = solve_spd(covariance_dd, centred_dK, max(rho * trace / moments.dim, floor))
        bias_K = -0.5 * np.einsum("kd,dk->k", moments.mean_Kd + mean_d, weight_dK)
        return moments.linear(weight_dK, bias_K, regularization=rho)

    def _rho(self, trace: float, trace_of_square: float, dim: int, samples: float) -> float:
        if self.regularization != "auto":
            return self.regularization
        return oas_shrinkage(trace, trace_of_square, dim, samples)
