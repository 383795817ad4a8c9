"""Ridge regression of several targets a sample from the sums alone: sets of labels, and outputs of a regression.

With features centred on their mean m, A = scatter / n and Q_k = covariance of target k with the features:

    W = (A + lambda I)^-1 Q      b_k = mean y_k - m^T W_k      lambda = alpha tr(A) / d

One alpha for all targets (one factorisation), by generalised cross-validation (Golub, Heath & Wahba 1979) over targets
of unit variance, so that each counts alike.

*Sets of labels* (one ridge a label, "binary relevance": Tsoumakas & Katakis 2007) end in a probability, from the sums
too, so that equal sums give equal probabilities whatever the order of the stream. Of label k, n1 of n samples have it
(pi = n1 / n), their means are m1 and m0, d = m1 - m0. The regression's fitted values f have in-sample class means f1,
f0 with f1 - f0 = D = W^T d, and variance v = W^T A W - pi (1 - pi) D^2 within the classes. In-sample values flatter:
each sample pulls its own fitted value by its leverage h, on average over those with and without the label

    h1 = (dof - D) / n + (1 - pi) D / (pi n)      h0 = (dof - D) / n + pi D / ((1 - pi) n)

(exact where both share one covariance; n1 h1 + n0 h0 = dof). A sample that was left out would get
1 - (1 - f1) / (1 - h1) and f0 / (1 - h0) on average, with v [pi / (1 - h1)^2 + (1 - pi) / (1 - h0)^2] (Allen 1974's
PRESS with average leverages, as in GCV). Two Gaussians of these means u1, u0 and this variance s give, by Bayes,

    logit p = (f - (u1 + u0) / 2) (u1 - u0) / s + prior      prior = log((n1 + 1/2) / (n0 + 1/2)), or 0 where balanced

which is linear in the features, so that weights and bias carry it. The direction of W_k is the same whether or not the
two classes count alike (both are Fisher's discriminant; the balanced scatter differs from A by a multiple of d d^T), so
balance is the prior alone.

Axes: K targets (sorted by name), C all targets (order of arrival), d features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from everlearn.errors import InvalidError, PreconditionError
from everlearn.heads._classes import ROUNDING, add_outer
from everlearn.heads._ridge import ALPHAS, FLOOR, search
from everlearn.linalg import factor_cholesky, solve_cholesky
from everlearn.target_sums import TargetSums
from everlearn.values import NEVER, FeatureScale, LinearHead

Float = npt.NDArray[np.float64]

MAX_SEPARATION: Final = 10.0
"""Standard deviations between two classes beyond which more says nothing: keeps logits finite where nothing spreads."""
_PROBES: Final = 16
"""Random vectors that estimate a trace within a few per cent (Hutchinson 1989), in a quick solve."""


@dataclass(frozen=True, kw_only=True)
class _Fit:
    """Ridge of centred targets of unit variance; feature units."""

    weight_dK: Float
    gain_K: Float
    """w^T q: covariance of target and fitted value, which for a label is D."""
    explained_K: Float
    """w^T A w: variance of the fitted values."""
    alpha: float
    dof: float
    mean_d: Float


def solve_sets(sums: TargetSums, scale: FeatureScale, *, balanced: bool, alpha: float | None) -> LinearHead:
    """Probabilities of each label. `alpha` None searches.

    Raises PreconditionError (reason EMPTY_MEMORY), InvalidError for an alpha that is not positive.
    """
    _check(sums, scale, alpha)
    samples, labels = sums.samples, sums.labels
    if not labels:
        raise PreconditionError("no sample has had a label yet; stream one that has", reason="EMPTY_MEMORY")
    order_C = sorted(range(len(labels)), key=labels.__getitem__)
    # A label that all samples have, or none, has nothing to be regressed on.
    column_K = np.array([c for c in order_C if 0 < sums.sum_K[c] < samples], np.intp)
    share_K = sums.sum_K[column_K] / samples
    deviation_K = np.sqrt(share_K * (1 - share_K))
    fit = _fit(sums, scale, column_K, share_K, deviation_K, alpha)
    slope_K, centre_K = _calibrated(fit, deviation_K, share_K, samples)
    with_C = sums.sum_K.astype(np.float64)
    prior_C = np.zeros(len(labels)) if balanced else np.log((with_C + 0.5) / (samples - with_C + 0.5))
    # Who has never been seen is never announced; who was never missed is by its frequency alone.
    bias_C = np.where(with_C == 0, NEVER, np.log((with_C + 0.5) / (samples - with_C + 0.5)))
    weight_dC = np.zeros((sums.dim, len(labels)), np.float32)
    weight_dK = fit.weight_dK * (deviation_K * slope_K)
    weight_dC[:, column_K] = weight_dK
    bias_C[column_K] = prior_C[column_K] + slope_K * (share_K - centre_K) - fit.mean_d @ weight_dK
    return LinearHead(
        weight_dC=weight_dC,
        bias_C=bias_C.astype(np.float32),
        normalise=False,
        labels=tuple(labels),
        regularization=fit.alpha,
        task="multilabel",
    )


def solve_values(sums: TargetSums, scale: FeatureScale, *, alpha: float | None) -> LinearHead:
    """A value for each output, in its own unit. `alpha` None searches. Raises as `solve_sets`."""
    _check(sums, scale, alpha)
    samples = float(sums.samples)
    names = sums.labels
    column_K = np.array(sorted(range(len(names)), key=names.__getitem__), np.intp)
    mean_K = sums.sum_K[column_K] / samples
    deviation_K = np.sqrt(np.maximum(sums.square_K[column_K] / samples - mean_K**2, 0.0))
    step_K = np.array([sums.outputs[column].step for column in column_K])
    centre_K = np.array([sums.outputs[column].centre for column in column_K])
    fit = _fit(sums, scale, column_K, mean_K, deviation_K, alpha)
    weight_dC, bias_C = np.zeros((sums.dim, len(names)), np.float32), np.zeros(len(names), np.float32)
    weight_dK = fit.weight_dK * (deviation_K * step_K)
    weight_dC[:, column_K] = weight_dK
    bias_C[column_K] = centre_K + mean_K * step_K - fit.mean_d @ weight_dK
    return LinearHead(
        weight_dC=weight_dC,
        bias_C=bias_C,
        normalise=False,
        labels=tuple(names),
        regularization=fit.alpha,
        task="regression",
    )


def _check(sums: TargetSums, scale: FeatureScale, alpha: float | None) -> None:
    if alpha is not None and not 0 < alpha < np.inf:
        raise InvalidError(f"regularization hint is {alpha}; it must be positive", field="hint")
    if scale.step_d.shape != (sums.dim,):
        raise InvalidError(f"the scale has {scale.step_d.size} steps; the sums have {sums.dim} features")
    if not sums.samples:
        raise PreconditionError("no sample has been learned; stream some first", reason="EMPTY_MEMORY")


def _fit(
    sums: TargetSums,
    scale: FeatureScale,
    column_K: npt.NDArray[np.intp],
    mean_K: Float,
    deviation_K: Float,
    alpha: float | None,
) -> _Fit:
    samples, step_d = float(sums.samples), scale.step_d.astype(np.float64)
    mean_d = sums.total_d * step_d / samples
    moment_dd = sums.gram_lower_dd * step_d  # as its factor, column-major
    moment_dd *= step_d[:, None]
    raw_trace = float(moment_dd.trace()) / samples
    add_outer(moment_dd, mean_d[None], np.array([-samples]))
    moment_dd /= samples
    trace = float(moment_dd.trace())
    if trace <= ROUNDING * raw_trace or not deviation_K.any():
        # Nothing tells the samples apart, in features or in targets: every weight is 0.
        nothing_dK = np.zeros((sums.dim, column_K.size))
        return _Fit(
            weight_dK=nothing_dK,
            gain_K=np.zeros(column_K.size),
            explained_K=np.zeros(column_K.size),
            alpha=alpha or ALPHAS[0],
            dof=1.0,
            mean_d=mean_d,
        )
    covariance_Kd = sums.cross_Kd[column_K] * step_d / samples - np.outer(mean_K, mean_d)
    unit_K = np.divide(1.0, deviation_K, out=np.zeros_like(deviation_K), where=deviation_K > 0)
    target_dK = np.asfortranarray((covariance_Kd * unit_K[:, None]).T)
    size, floor = trace / sums.dim, FLOOR * raw_trace
    if alpha is None:
        spread = float(np.count_nonzero(deviation_K))
        alpha, weight_dK, dof = search(moment_dd, target_dK, size=size, floor=floor, spread=spread, samples=samples)
    else:
        weight_dK, dof = _quick(moment_dd, target_dK, max(alpha * size, floor))
    ridge = max(alpha * size, floor)
    gain_K = np.einsum("dk,dk->k", weight_dK, target_dK)
    explained_K = np.maximum(gain_K - ridge * np.einsum("dk,dk->k", weight_dK, weight_dK), 0.0)
    return _Fit(weight_dK=weight_dK, gain_K=gain_K, explained_K=explained_K, alpha=alpha, dof=dof, mean_d=mean_d)


def _quick(moment_dd: Float, target_dK: Float, ridge: float) -> tuple[Float, float]:
    """Weights, and degrees of freedom by random probes: 1 + d - ridge tr((A + ridge I)^-1)."""
    dim = len(moment_dd)
    probe_dP = np.random.default_rng(0).choice([-1.0, 1.0], (dim, _PROBES))
    moment_dd[np.diag_indices_from(moment_dd)] += ridge
    factor_cholesky(moment_dd)
    both_d = solve_cholesky(moment_dd, np.concatenate([target_dK, probe_dP], axis=1))
    targets = target_dK.shape[1]
    trace = float(np.einsum("dp,dp->", probe_dP, both_d[:, targets:])) / _PROBES
    return both_d[:, :targets], 1.0 + min(max(dim - ridge * trace, 0.0), float(dim))


def _calibrated(fit: _Fit, deviation_K: Float, share_K: Float, samples: int) -> tuple[Float, Float]:
    """Slope of the logit in the fitted value, and the value where both classes are as likely; see the module's text.

    The slope is 0 where samples that were left out would not be told apart: then the prior speaks alone.
    """
    gain_K, rest_K = fit.gain_K, 1 - share_K
    within_K = np.maximum(deviation_K**2 * (fit.explained_K - gain_K**2), 0.0)
    leverage_K = (fit.dof - gain_K) / samples
    kept1_K = 1 - leverage_K - rest_K * gain_K / (share_K * samples)
    kept0_K = 1 - leverage_K - share_K * gain_K / (rest_K * samples)
    known_K = (kept1_K > 0) & (kept0_K > 0)
    kept1_K, kept0_K = np.where(known_K, kept1_K, 1.0), np.where(known_K, kept0_K, 1.0)
    high_K = 1 - rest_K * (1 - gain_K) / kept1_K
    low_K = share_K * (1 - gain_K) / kept0_K
    variance_K = within_K * (share_K / kept1_K**2 + rest_K / kept0_K**2)
    apart_K = np.where(known_K, np.maximum(high_K - low_K, 0.0), 0.0)
    least_K = np.maximum(variance_K, (apart_K / MAX_SEPARATION) ** 2)
    slope_K: Float = np.divide(apart_K, least_K, out=np.zeros_like(apart_K), where=least_K > 0)
    return slope_K, (high_K + low_K) / 2
