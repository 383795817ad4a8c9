"""How well a frozen trunk fits the data, from the sums alone: LogME, H-score and the GCV residual. No sample is needed.

- *LogME* (You et al. 2021, arXiv:2102.11005): log evidence a sample of a Bayesian linear model on one-hot targets, mean
  over the classes, in nats. Higher is better; comparable between trunks of any dimension on the same samples.
- *H-score* (Bao et al. 2019), with the feature covariance shrunk (Ibrahim et al. 2022, arXiv:2110.06893): how much of
  the features' variance lies between the classes, 0 to min(K - 1, d). Higher is better. The shrinkage is OAS, not
  Ledoit-Wolf: the latter needs fourth moments of the samples, which sums do not hold.
- *GCV residual* (Golub, Heath & Wahba 1979): the share of the labels' variance that the best ridge leaves unexplained
  on samples it has not seen, as generalised cross-validation estimates it. 0 is perfect, 1 is what the class
  frequencies alone say.

What sums cannot tell: accuracy, training or left-out. It depends on which side of a boundary each sample lies, and only
second moments are kept; take it from the prequential record.

Axes: K learned classes, d features, T values of a penalty.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from everlearn.errors import InvalidError, PreconditionError
from everlearn.heads._classes import ROUNDING, Moments, add_outer
from everlearn.heads._ridge import ALPHAS, FLOOR, MAX_DOF_SHARE, solve_spd
from everlearn.linalg import Tridiagonal
from everlearn.shrinkage import oas_shrinkage
from everlearn.sums import Sums
from everlearn.values import FeatureScale

Float = npt.NDArray[np.float64]

PRECISIONS: Final = tuple(10.0 ** (quarter / 4) for quarter in range(-32, 25))
"""Prior over noise precision, relative to the mean eigenvalue, that LogME looks at: 1e-8 to 1e6. Quarters of a
decade, with the parabola, come within 3e-4 nats."""


@dataclass(frozen=True, kw_only=True)
class Transferability:
    """The figures of one memory; see the module for what each means."""

    samples: int
    classes: int
    """With at least one sample."""
    log_me: float
    """Nats a sample."""
    h_score: float
    h_shrinkage: float
    """Of the covariance behind `h_score`, 0 to 1; near 1 there were too few samples to say much."""
    gcv_residual: float
    """Share of the labels' variance, 0 to 1."""


def transferability(sums: Sums, scale: FeatureScale) -> Transferability:
    """All figures. Two Householder reductions and one Cholesky factorisation.

    Raises PreconditionError: reason EMPTY_MEMORY without samples, ONE_CLASS with fewer than two classes.
    """
    moments = _moments(sums, scale)
    score, shrinkage = h_score(sums, scale)
    return Transferability(
        samples=int(moments.samples),
        classes=moments.count_K.size,
        log_me=log_me(sums, scale),
        h_score=score,
        h_shrinkage=shrinkage,
        gcv_residual=gcv_residual(sums, scale),
    )


def log_me(sums: Sums, scale: FeatureScale) -> float:
    """Log evidence a sample, in nats, mean over the classes; as in the paper without an intercept.

    With prior precision alpha, noise precision beta and t = alpha / beta, the best beta at a given t is known, and

        2 log p(y_c) / n = log(n / (2 pi e r_c(t))) - sum_i log(1 + g_i / t) / n      r_c(t) = n_c - s_c (G + tI)^-1 s_c

    where g are the eigenvalues of G and s_c is the class's feature sum. One dimension is left, which a grid with a
    parabola through its best points maximises globally; the paper's fixed point overflows where a feature
    tells nothing of a class.
    """
    moments = _moments(sums, scale)
    count_K, samples = moments.count_K, moments.samples
    gram_dd = sums.gram_lower_dd * moments.step_d
    gram_dd *= moments.step_d[:, None]
    size = float(gram_dd.trace()) / moments.dim
    if size <= 0.0:  # all features are 0: noise alone explains the labels
        return float(np.mean(_half_log(samples, count_K)))
    tri = Tridiagonal(gram_dd)
    eigenvalue_d = tri.eigenvalues()
    rotated_dK = tri.rotate(np.asfortranarray((moments.mean_Kd * count_K[:, None]).T))
    evidence_TK = np.empty((len(PRECISIONS), count_K.size))
    for row, precision in enumerate(PRECISIONS):
        ridge = precision * size
        explained_K = np.einsum("dk,dk->k", rotated_dK, tri.solve(rotated_dK, ridge))
        rest_K = np.maximum(count_K - explained_K, ROUNDING * count_K)
        evidence_TK[row] = _half_log(samples, rest_K) - 0.5 * np.log1p(eigenvalue_d / ridge).sum() / samples
    return float(np.mean(_peak(evidence_TK)))


def h_score(sums: Sums, scale: FeatureScale, *, shrinkage: float | None = None) -> tuple[float, float]:
    """H-score and the shrinkage behind it: (1 - a) tr(((1 - a) C + a tr(C)/d I)^-1 B).

    C is the covariance of the features and B the part of it between the classes. `shrinkage` a is OAS if left out; 0
    is Bao's own score, which flatters where there are few samples a feature. Raises InvalidError outside [0, 1].
    """
    if shrinkage is not None and not 0 <= shrinkage <= 1:
        raise InvalidError(f"shrinkage is {shrinkage}; it must be from 0 to 1", field="shrinkage")
    moments = _moments(sums, scale)
    covariance_dd, centred_Kd, raw_trace = _total_scatter(moments)
    covariance_dd /= moments.samples
    trace = float(covariance_dd.trace())
    if trace <= ROUNDING * raw_trace / moments.samples:
        return 0.0, 1.0  # nothing tells the samples apart
    if shrinkage is None:
        squares = 2 * float(np.sum(covariance_dd**2)) - float(np.sum(covariance_dd.diagonal() ** 2))
        shrinkage = oas_shrinkage(trace, squares, moments.dim, max(moments.samples - 1, 1))
    covariance_dd *= 1 - shrinkage
    floor = FLOOR * raw_trace / moments.samples
    between_dK = np.asfortranarray((np.sqrt(moments.count_K / moments.samples)[:, None] * centred_Kd).T)
    solved_dK = solve_spd(covariance_dd, between_dK, max(shrinkage * trace / moments.dim, floor))
    return (1 - shrinkage) * float(np.sum(solved_dK * between_dK)), shrinkage


def gcv_residual(sums: Sums, scale: FeatureScale) -> float:
    """GCV of the best ridge (intercept free, plain class weights) over that of the intercept alone, at most 1."""
    moments = _moments(sums, scale)
    samples, count_K = moments.samples, moments.count_K
    scatter_dd, centred_Kd, raw_trace = _total_scatter(moments)
    trace = float(scatter_dd.trace())
    if trace <= ROUNDING * raw_trace:
        return 1.0
    tri = Tridiagonal(scatter_dd)
    eigenvalue_d = tri.eigenvalues()
    rotated_dK = tri.rotate(np.asfortranarray((count_K[:, None] * centred_Kd).T))
    spread = float(np.sum(count_K * (1 - count_K / samples)))
    best = alone = spread / (1 - 1 / samples) ** 2
    for alpha in ALPHAS:
        ridge = max(alpha * trace / moments.dim, FLOOR * raw_trace)
        dof = 1.0 + float(np.sum(eigenvalue_d / (eigenvalue_d + ridge)))
        if dof >= MAX_DOF_SHARE * samples:
            break  # dof only grows as alpha falls
        weight_dK = tri.solve(rotated_dK, ridge)
        rest = spread - float(np.sum(rotated_dK * weight_dK)) - ridge * float(np.sum(weight_dK**2))
        best = min(best, max(rest, 0.0) / (1 - dof / samples) ** 2)
    return best / alone


def _moments(sums: Sums, scale: FeatureScale) -> Moments:
    moments = Moments.of(sums, scale)
    if moments.count_K.size < 2:
        raise PreconditionError(
            f"only {moments.labels[moments.column_K[0]]!r} has been learned; at least two classes are needed",
            reason="ONE_CLASS",
        )
    return moments


def _total_scatter(moments: Moments) -> tuple[Float, Float, float]:
    """Scatter around the mean (lower triangle), class means less the mean, and the trace to judge rounding against."""
    scatter_dd, raw_trace = moments.scatter()
    centred_Kd = moments.mean_Kd - moments.count_K @ moments.mean_Kd / moments.samples
    return add_outer(scatter_dd, centred_Kd, moments.count_K), centred_Kd, raw_trace


def _half_log(samples: float, rest_K: Float) -> Float:
    """Log likelihood a sample of Gaussian noise whose variance is `rest` / n."""
    half: Float = 0.5 * (np.log(samples / rest_K) - np.log(2 * np.pi) - 1)
    return half


def _peak(value_TK: Float) -> Float:
    """Each column's maximum, by the parabola through its best row and that row's neighbours."""
    best_K = value_TK.argmax(axis=0)
    column_K = np.arange(value_TK.shape[1])
    top_K = value_TK[best_K, column_K]
    left_K = value_TK[np.maximum(best_K - 1, 0), column_K]
    right_K = value_TK[np.minimum(best_K + 1, len(value_TK) - 1), column_K]
    bend_K = left_K - 2 * top_K + right_K
    is_inner_K = (best_K > 0) & (best_K < len(value_TK) - 1) & (bend_K < 0)
    rise_K = (right_K - left_K) ** 2 / (8 * np.where(is_inner_K, bend_K, -1.0))
    peak_K: Float = top_K - np.where(is_inner_K, rise_K, 0.0)
    return peak_K
