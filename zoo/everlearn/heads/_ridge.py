"""Ridge regression onto one-hot targets from the sums alone, its penalty chosen by generalised cross-validation.

Class c weighs w_c ~ n_c^(1 - p), sum w = K: p = 0 is plain ridge, p = 1 counts every class alike. With class means m_c,
pooled within-class covariance V, and m = sum_c w_c m_c / K, all centred on m (an intercept that is not penalised):

    A = K V + sum_c w_c (m_c - m)(m_c - m)^T      Q_c = w_c (m_c - m)
    W = (A + lambda I)^-1 Q                       b_c = w_c / K - m^T W_c       lambda = alpha tr(A) / d

For p = 0 this is exactly ridge on the samples; for p > 0 it is weighted ridge on the samples if classes share their
within-class covariance, and it needs no Gram matrix per class.

GCV (Golub, Heath & Wahba 1979, eq. 1.4): minimise RSS(lambda) / (1 - dof(lambda) / n)^2, one degree of freedom for the
intercept. Weighted classes carry less information than n samples. Kish's effective size, K^2 / sum w_c^2 / n_c, makes
GCV too cautious for a classifier; the geometric mean of it and n was chosen on long-tailed digits and MNIST.

One Householder tridiagonalisation A = H T H^T serves the whole grid: solving with T + lambda I costs O(d K), the trace
needs T's eigenvalues only, and nothing needs the eigenvectors that `eigh` would spend most of its time on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from everlearn.errors import InvalidError, SpecError
from everlearn.heads._classes import ROUNDING, Moments, add_outer
from everlearn.linalg import Tridiagonal, factor_cholesky, solve_cholesky
from everlearn.values import LinearHead

Float = npt.NDArray[np.float64]

ALPHAS: Final = tuple(10.0 ** (exponent / 2) for exponent in range(4, -13, -1))
"""100 down to 1e-6. The top is for fewer samples than features; from the top, because a tie goes to the safer one."""
ALPHA_RANGE: Final = (1e-6, 1e4)
"""What a declaration may fix."""
MAX_DOF_SHARE: Final = 0.95
"""Where a fit uses up nearly all samples, GCV divides noise by noise."""
FLOOR: Final = 1e-13
"""Least lambda relative to the raw trace: keeps A + lambda I positive definite in float64 whatever A's rank."""


def checked_alpha(regularization: Literal["auto"] | float) -> float | None:
    """The declared penalty, None for `auto`. Raises SpecError."""
    if regularization == "auto":
        return None
    low, high = ALPHA_RANGE
    if not low <= regularization <= high:
        raise SpecError(
            f"regularization is {regularization}; a ridge head takes 'auto' or a number from {low} to {high}",
            field="spec.head.regularization",
        )
    return float(regularization)


def solve_ridge(moments: Moments, *, balance: float, alpha: float | None, caution: float = 0.5) -> LinearHead:
    """The head; `balance` is p, `alpha` None searches. Raises InvalidError for an alpha that is not positive.

    `caution`: the samples that GCV is told of are kish^caution n^(1 - caution).
    """
    if alpha is not None and not 0 < alpha < np.inf:
        raise InvalidError(f"regularization hint is {alpha}; it must be positive", field="hint")
    count_K, classes = moments.count_K, moments.count_K.size
    weight_K = count_K ** (1.0 - balance)
    weight_K *= classes / weight_K.sum()
    mean_d = weight_K @ moments.mean_Kd / classes
    centred_Kd = moments.mean_Kd - mean_d
    per_sample = classes / moments.samples
    moment_dd, raw_trace = moments.scatter()
    raw_trace *= per_sample
    moment_dd *= per_sample
    add_outer(moment_dd, centred_Kd, weight_K)
    trace = float(moment_dd.trace())
    if trace <= ROUNDING * raw_trace:
        # Nothing tells the samples apart: the best score is each class's weight.
        nothing_dK = np.zeros((moments.dim, classes))
        return moments.linear(nothing_dK, weight_K / classes, regularization=alpha or ALPHAS[0])
    target_dK = np.asfortranarray((weight_K[:, None] * centred_Kd).T)
    size = trace / moments.dim
    floor = FLOOR * raw_trace
    if alpha is None:
        spread = float(np.sum(weight_K - weight_K**2 / classes))
        kish = classes**2 / float(np.sum(weight_K**2 / count_K))
        effective = float(kish**caution * moments.samples ** (1 - caution))
        alpha, weight_dK, _ = search(moment_dd, target_dK, size=size, floor=floor, spread=spread, samples=effective)
    else:
        weight_dK = solve_spd(moment_dd, target_dK, max(alpha * size, floor))
    return moments.linear(weight_dK, weight_K / classes - mean_d @ weight_dK, regularization=alpha)


def solve_spd(lower_dd: Float, target_dK: Float, ridge: float) -> Float:
    """(A + ridge I)^-1 target by one Cholesky factorisation, which overwrites A."""
    lower_dd[np.diag_indices_from(lower_dd)] += ridge
    factor_cholesky(lower_dd)  # the ridge's floor keeps the matrix positive definite
    return solve_cholesky(lower_dd, target_dK)


def search(
    moment_dd: Float,
    target_dK: Float,
    *,
    size: float,
    floor: float,
    spread: float,
    samples: float,
    alphas: Sequence[float] = ALPHAS,
) -> tuple[float, Float, float]:
    """alpha of least GCV, the weights there and their degrees of freedom; overwrites A.

    `size`: mean eigenvalue; `floor`: least penalty; `spread`: RSS of the intercept alone; `samples`: effective number;
    `alphas`: what is tried, descending.
    """
    tri = Tridiagonal(moment_dd)
    rotated_dK = tri.rotate(target_dK)
    eigenvalue_d = tri.eigenvalues()
    best_score, best_alpha, best_dK, best_dof = np.inf, alphas[0], None, 1.0
    for alpha in alphas:
        ridge = max(alpha * size, floor)
        dof = 1.0 + float(np.sum(eigenvalue_d / (eigenvalue_d + ridge)))
        if dof >= MAX_DOF_SHARE * samples:
            break  # dof only grows as alpha falls
        weight_dK = tri.solve(rotated_dK, ridge)
        # tr(W^T A W) = tr(W^T Q) - ridge |W|^2, so A itself is not needed.
        rss = spread - _inner(rotated_dK, weight_dK) - ridge * _inner(weight_dK, weight_dK)
        score = max(rss, 0.0) / (1.0 - dof / samples) ** 2
        if score < best_score:
            best_score, best_alpha, best_dK, best_dof = score, alpha, weight_dK, dof
    if best_dK is None:  # too few samples for any of them: the strongest penalty
        ridge = max(best_alpha * size, floor)
        best_dK, best_dof = tri.solve(rotated_dK, ridge), 1.0 + float(np.sum(eigenvalue_d / (eigenvalue_d + ridge)))
    return best_alpha, tri.rotate_back(best_dK), best_dof


def _inner(left_dK: Float, right_dK: Float) -> float:
    """Sum of products; both column-major, so flattening copies nothing."""
    return float(np.dot(left_dK.ravel(order="K"), right_dK.ravel(order="K")))
