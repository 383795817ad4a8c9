"""Moves sums from one backbone's features to another's by unlabelled pairs, without a single labelled sample.

Both trunks see the same n unlabelled samples, giving pairs (x, y) of old and new features. From their sums alone:

    y ~ A^T x + b          ridge, A = (X^T X + lambda I)^-1 X^T Y on centred pairs, lambda by GCV over all outputs
    R = cov(y - A^T x - b)  of n - dof degrees of freedom: what the map cannot know

A class of n_c samples with mean m_c, and the scatter W within classes, become

    m'_c = A^T m_c + b + r_c           W' = A^T W A + (N - K) R'

r_c is the mean residual of the pairs that the old head takes for class c: what the new backbone knows of c beyond a
linear map. R' = R less the scatter of the r_c, which the means now
hold. The residual's covariance is what makes heads expect the spread that the new trunk will really show. A class that
the old head never sees among the pairs has r_c = 0.

Where y is a linear map of x all of it is exact up to rounding; in general it is an estimate, so the moved sums say that
they are not exact (cf. Gomez-Villa et al. 2024, "Exemplar-free continual representation learning via learnable drift
compensation", who fit such a map on one task's data for prototypes alone; on a swap of the whole backbone the pairs
must be of all classes).

Pairs are added as integers, so neither order nor batching shows. Axes: B pairs, d old features, e new, K classes with
samples, C all classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from everlearn.errors import InputError, InvalidError, PreconditionError
from everlearn.heads._classes import add_outer
from everlearn.heads._ridge import ALPHAS, FLOOR, search
from everlearn.sums import Sums
from everlearn.values import FeaturesBd, FeatureScale, QuantisedBd

Float = npt.NDArray[np.float64]

MAP_ALPHAS: Final = (*ALPHAS, 1e-8, 1e-10)
"""A head is never sure of six digits; of a map from features to features that are nearly the same one may be."""
MAX_FEATURES: Final = 8192
"""d + e: the sums of pairs take 8 (d + e)^2 bytes, half a GiB there."""


class Pairs:
    """Exact sums over pairs of quantised features; nothing of a single pair is kept.

    >>> pairs = Pairs(1, 2)
    >>> pairs.add(np.array([[3]], np.int16), np.array([[1, 2]], np.int16), ["cat"])
    >>> pairs.samples, pairs.counts
    (1, {'cat': 1})
    """

    def __init__(self, old_dim: int, new_dim: int) -> None:
        """Raises PreconditionError (reason TOO_MANY_FEATURES)."""
        if old_dim + new_dim > MAX_FEATURES:
            raise PreconditionError(
                f"{old_dim} old and {new_dim} new features; together at most {MAX_FEATURES} can be paired",
                reason="TOO_MANY_FEATURES",
            )
        self.old_dim, self.new_dim = old_dim, new_dim
        self._sums = Sums(old_dim + new_dim)

    def add(self, old_Bd: QuantisedBd, new_Be: QuantisedBd, predicted: Sequence[str]) -> None:
        """Adds pairs; `predicted`: the label that the old head gives to each. Raises InputError where sizes differ."""
        if old_Bd.shape != (len(predicted), self.old_dim) or new_Be.shape != (len(predicted), self.new_dim):
            raise InputError(
                f"pairs of shapes {old_Bd.shape} and {new_Be.shape} for {len(predicted)} predictions; they must be "
                f"[B, {self.old_dim}] and [B, {self.new_dim}]",
                field="features",
            )
        self._sums.add(np.hstack([old_Bd, new_Be]), predicted)

    @property
    def samples(self) -> int:
        """n."""
        return self._sums.samples

    @property
    def counts(self) -> dict[str, int]:
        """Pairs that the old head took for each label."""
        return dict(zip(self._sums.labels, self._sums.count_C.astype(int).tolist(), strict=True))

    @property
    def sums(self) -> Sums:
        """Of old and new features side by side, by predicted label; live."""
        return self._sums


@dataclass(frozen=True, kw_only=True)
class FeatureMap:
    """y ~ A^T x + b, and what it leaves unexplained. In units of features, not of integers."""

    weight_de: Float
    bias_e: Float
    residual_ee: Float
    """R: covariance of what is left; symmetric."""
    beyond: dict[str, Float]
    """r_c [e] by label."""
    counts: dict[str, int]
    """Pairs behind each."""
    alpha: float
    """Penalty relative to the mean eigenvalue."""
    dof: float
    """Pairs that the fit has used up, for each new feature."""
    samples: int

    def apply(self, old_Bd: FeaturesBd) -> Float:
        """What is expected of the new trunk, [B, e]."""
        mapped_Be: Float = old_Bd @ self.weight_de + self.bias_e
        return mapped_Be


def fit_map(pairs: Pairs, old: FeatureScale, new: FeatureScale) -> FeatureMap:
    """The map of least GCV. Raises PreconditionError (reason TOO_FEW_SAMPLES) for fewer than two pairs."""
    if pairs.samples < 2:
        raise PreconditionError(f"{pairs.samples} pairs; a map needs many", reason="TOO_FEW_SAMPLES")
    sums, d, n = pairs.sums, pairs.old_dim, pairs.samples
    step = np.concatenate([old.step_d, new.step_d]).astype(np.float64)
    sum_Kz = sums.sum_Cd * step
    mean_z = sum_Kz.sum(axis=0) / n
    moment_zz = sums.gram_dd * step * step[:, None]
    raw_trace = float(moment_zz[:d, :d].trace())
    moment_zz -= n * np.outer(mean_z, mean_z)
    old_dd, cross_de, new_ee = moment_zz[:d, :d], moment_zz[:d, d:], moment_zz[d:, d:]
    alpha, weight_de, dof = search(
        np.asfortranarray(old_dd),
        np.asfortranarray(cross_de),
        size=max(float(old_dd.trace()), np.finfo(np.float64).tiny) / d,
        floor=FLOOR * max(raw_trace, np.finfo(np.float64).tiny),
        spread=float(new_ee.trace()),
        samples=float(n),
        alphas=MAP_ALPHAS,
    )
    bias_e = mean_z[d:] - mean_z[:d] @ weight_de
    explained_ee = weight_de.T @ cross_de
    left_ee = new_ee - explained_ee - explained_ee.T + weight_de.T @ old_dd @ weight_de
    counts = pairs.counts
    beyond = {
        label: (row[d:] - row[:d] @ weight_de) / counts[label] - bias_e
        for label, row in zip(sums.labels, sum_Kz, strict=True)
    }
    return FeatureMap(
        weight_de=weight_de,
        bias_e=bias_e,
        residual_ee=_symmetric(left_ee / max(n - dof, 1.0)),
        beyond=beyond,
        counts=counts,
        alpha=alpha,
        dof=dof,
        samples=n,
    )


def move(sums: Sums, to: FeatureMap, old: FeatureScale, new: FeatureScale) -> Sums:
    """The sums as the new trunk would have made them, estimated: inexact, labels and counts as they were.

    Raises InvalidError where the map is not of these features, PreconditionError (reason EMPTY_MEMORY).
    """
    if to.weight_de.shape != (sums.dim, new.step_d.size) or old.step_d.size != sums.dim:
        raise InvalidError(f"a map of {to.weight_de.shape} features; the sums have {sums.dim}", field="dim")
    count_C = sums.count_C.astype(np.float64)
    learned_K = np.flatnonzero(count_C)
    if not learned_K.size:
        raise PreconditionError("no sample has been learned; there is nothing to move", reason="EMPTY_MEMORY")
    labels, old_step_d, new_step_e = sums.labels, old.step_d.astype(np.float64), new.step_d.astype(np.float64)
    count_K = count_C[learned_K]
    old_mean_Kd = sums.sum_Cd[learned_K] * old_step_d / count_K[:, None]
    nothing_e = np.zeros(new_step_e.size)
    beyond_Ke = np.array([to.beyond.get(labels[row], nothing_e) for row in learned_K])
    mean_Ke = old_mean_Kd @ to.weight_de + to.bias_e + beyond_Ke
    within_dd = sums.gram_dd * old_step_d * old_step_d[:, None] - (old_mean_Kd * count_K[:, None]).T @ old_mean_Kd
    freedom = max(float(count_K.sum()) - learned_K.size, 0.0)
    gram_ee = to.weight_de.T @ within_dd @ to.weight_de + freedom * _beside_the_means(to)
    gram_ee = np.asfortranarray(np.tril(gram_ee))
    add_outer(gram_ee, mean_Ke, count_K)
    gram_ee /= new_step_e
    gram_ee /= new_step_e[:, None]
    sum_Ce = np.zeros((len(labels), new_step_e.size))
    sum_Ce[learned_K] = mean_Ke * count_K[:, None] / new_step_e
    return Sums.estimated(labels, count_C, sum_Ce, gram_ee)


def _beside_the_means(to: FeatureMap) -> Float:
    """R': the residual's covariance about the means r_c."""
    if not to.beyond:
        return to.residual_ee
    rows_Ke = np.array([np.sqrt(to.counts[label]) * beyond_e for label, beyond_e in to.beyond.items()])
    return _symmetric(to.residual_ee - rows_Ke.T @ rows_Ke / max(to.samples - to.dof, 1.0))


def _symmetric(covariance_ee: Float) -> Float:
    """A sum of squares but for rounding, which heads allow for."""
    symmetric_ee: Float = (covariance_ee + covariance_ee.T) / 2
    return symmetric_ee
