"""How unlike all learned classes a sample is, and from where on it is unknown: from n, S and G alone.

The distance is Mahalanobis' to the nearest class mean, under one covariance of all classes (Lee et al. 2018, "A simple
unified framework for detecting out-of-distribution samples"), but in a few directions instead of all d:

    V~ = (1 - rho) V + rho tr(V)/d I = L L^T          pooled within classes, rho by OAS
    Q  = orthonormal: span of L^-1 (m_c - m), then random directions
    z  = Q^T L^-1 (x - m)                             T_c = |z - z_c|^2

The first directions are those that tell the classes apart. A new class shows there, and far less over all d, where the
noise of many directions that say nothing drowns it: that is why the relative distance of Ren et al. 2021 ("A simple
fix to Mahalanobis distance") does well on it, and they are where that one looks. The random ones estimate the rest,
which is what a thing of another kind is far off in. A matrix of d columns would make each version megabytes; this is
kilobytes (4 d (K + 32) bytes).

What T is for a sample that belongs to c, and was *not* learned, follows from the sums too. V was made of the very
samples and so fits them too well; as in generalised cross validation, with dof = tr(V (V + ridge)^-1) of n - K:

    E T_c = (1 + 1/n_c) (g^2 sum_own v_j + g sum_random v_j) + min(g t/n_c, D_c)^2 / D_c,    g = 1 / (1 - dof/(n - K))

v_j: variance of z_j over what was learned; D_c = |z_c|^2 and t = tr(V~^-1 V): a rare class's mean is off by noise, and
lies nearer to the others than it seems (as in `balanced_lda`). Measured: within a tenth from 150 digits up to 8,000 of
MNIST, where T itself grows threefold from samples that were learned to others.

How far T spreads around that no sum of squares can say, and a chi-square does not: real samples differ in contrast and
size, so each has a scale of its own. It is taken as lognormal, of SPREAD, beside the chi-square's 2/h with h its
degrees of freedom; by the chi-square alone a tenth of MNIST is unknown where one in a hundred was declared. So a level
is a guide, not a guarantee (`python -m tests.benchmarks novelty`), and a class of a few samples, whose mean is little
but noise, is taken for unknown more often than declared.

Axes: K learned classes, C all, d features, k directions.
"""

from __future__ import annotations

from statistics import NormalDist
from typing import Final

import numpy as np
import numpy.typing as npt

from everlearn.heads._classes import ROUNDING, Moments
from everlearn.heads._ridge import FLOOR
from everlearn.linalg import factor_cholesky, solve_triangular
from everlearn.shrinkage import oas_shrinkage
from everlearn.sums import Sums
from everlearn.values import FeatureScale, Novelty

Float = npt.NDArray[np.float64]

RANDOM: Final = 32
"""Directions besides those of the classes."""
MAX_OWN: Final = 96
"""Directions of the classes; more classes are mixed into so many."""
SPREAD: Final = 0.6
"""Standard deviation of the logarithm of a sample's own scale. Measured on features of digits and MNIST, and on plain
tables: 0.4 to 0.8."""
_MAX_RHO: Final = 0.95
"""Never wholly a sphere: how V spreads in a direction is read from V~, in which it must not be drowned."""
_FAR: Final = 1e30
"""Distance to a class without samples."""
_MAX_DOF: Final = 0.95
"""Share of the samples; closer to 1 the correction divides noise by noise."""


def solve_novelty(sums: Sums, scale: FeatureScale, *, false_alarms: float) -> Novelty:
    """What tells how unlike all learned classes a sample is; beyond 1 it is unknown.

    `false_alarms`: share of samples of learned classes that may be taken for unknown. Where nothing is known of how
    samples of a class differ (one of each), nothing is unknown.

    Raises PreconditionError (reason EMPTY_MEMORY) where no sample has been learned.
    """
    moments = Moments.of(sums, scale)
    mean_d = moments.mean_Kd.mean(axis=0)
    covariance_dd, raw_trace = moments.scatter()
    trace, classes, dim = float(covariance_dd.trace()), moments.count_K.size, moments.dim
    freedom = moments.samples - classes
    if trace <= ROUNDING * raw_trace or freedom < 1:
        return _silent(moments)
    covariance_dd /= freedom
    trace /= freedom
    trace_of_square = 2 * float(np.sum(covariance_dd**2)) - float(np.sum(covariance_dd.diagonal() ** 2))
    rho = min(oas_shrinkage(trace, trace_of_square, dim, freedom), _MAX_RHO)
    ridge = max(rho * trace / dim, FLOOR * raw_trace / freedom)
    covariance_dd *= 1.0 - rho
    covariance_dd[np.diag_indices_from(covariance_dd)] += ridge
    factor_cholesky(covariance_dd)
    own_dk = solve_triangular(covariance_dd, _mixed((moments.mean_Kd - mean_d).T))
    own, random = own_dk.shape[1], min(RANDOM, dim - own_dk.shape[1])
    direction_dk = np.linalg.qr(np.hstack([own_dk, _signs(dim, random)]))[0]
    basis_dk = solve_triangular(covariance_dd, direction_dk, transposed=True)
    probe_dP = _signs(dim, RANDOM)
    # tr(V~^-1) by Hutchinson's estimator, then tr(V~^-1 V) of it.
    inverse_trace = float(np.mean(np.sum(solve_triangular(covariance_dd, probe_dP) ** 2, axis=0)))
    within = max(dim - ridge * inverse_trace, 0.0) / (1.0 - rho)
    gain = 1.0 / (1.0 - min((1.0 - rho) * within / freedom, _MAX_DOF))
    spread_k = np.maximum(1.0 - ridge * np.sum(basis_dk**2, axis=0), 0.0) / (1.0 - rho)
    spread_k *= np.concatenate([np.full(own, gain**2), np.full(random, gain)])
    centre_Kk = (moments.mean_Kd - mean_d) @ basis_dk
    limit_K = _limits(spread_k, centre_Kk[:, :own], gain * within / moments.count_K, moments.count_K, false_alarms)
    return _novelty(moments, basis_dk, mean_d, centre_Kk, limit_K)


def _limits(spread_k: Float, own_Kk: Float, noise_K: Float, count_K: Float, false_alarms: float) -> Float:
    """T beyond which a sample is not of the class."""
    expected = float(spread_k.sum())
    distance_K = np.sum(own_Kk**2, axis=1)
    shift_K = np.divide(
        np.minimum(noise_K, distance_K) ** 2, distance_K, out=np.zeros_like(distance_K), where=distance_K > 0
    )
    variance = SPREAD**2 + 2.0 * float(np.sum(spread_k**2)) / max(expected**2, 1e-300)
    beyond = NormalDist().inv_cdf(1.0 - false_alarms)
    limit_K: Float = (expected * (1.0 + 1.0 / count_K) + shift_K) * np.exp(beyond * np.sqrt(variance) - 0.5 * variance)
    return limit_K


def _novelty(moments: Moments, basis_dk: Float, mean_d: Float, centre_Kk: Float, limit_K: Float) -> Novelty:
    """|z - z_c|^2 / limit_c = |z|^2 / limit_c - 2 z z_c / limit_c + |z_c|^2 / limit_c, all classes by one product."""
    labels = len(moments.labels)
    weight_kC = np.zeros((basis_dk.shape[1], labels), np.float32)
    scale_C, bias_C = np.zeros(labels, np.float32), np.full(labels, _FAR, np.float32)
    weight_kC[:, moments.column_K] = -2.0 * centre_Kk.T / limit_K
    scale_C[moments.column_K] = 1.0 / limit_K
    bias_C[moments.column_K] = np.sum(centre_Kk**2, axis=1) / limit_K
    return Novelty(
        basis_dk=basis_dk.astype(np.float32),
        offset_k=(-mean_d @ basis_dk).astype(np.float32),
        weight_kC=weight_kC,
        bias_C=bias_C,
        scale_C=scale_C,
    )


def _silent(moments: Moments) -> Novelty:
    """Finds nothing new."""
    labels = len(moments.labels)
    return Novelty(
        basis_dk=np.zeros((moments.dim, 1), np.float32),
        offset_k=np.zeros(1, np.float32),
        weight_kC=np.zeros((1, labels), np.float32),
        bias_C=np.zeros(labels, np.float32),
        scale_C=np.zeros(labels, np.float32),
    )


def _mixed(centred_dK: Float) -> Float:
    """Columns that span the means around their mean, one fewer than there are; of many classes, sums of them."""
    dim, classes = centred_dK.shape
    count = min(classes - 1, MAX_OWN, dim)
    return centred_dK[:, :count] if count >= min(classes - 1, dim) else centred_dK @ _signs(classes, count)


def _signs(rows: int, columns: int) -> Float:
    """Random directions: signs, from one seed, so that equal sums give equal bits."""
    coin = np.random.Generator(np.random.PCG64(0)).integers(0, 2, (rows, columns)).astype(np.float64)
    signs: Float = 2 * coin - 1
    return signs
