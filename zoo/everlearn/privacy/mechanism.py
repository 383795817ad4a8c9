"""The Gaussian mechanism on the increment of (n, S, G): what one sample can change, and noise to hide it.

Each feature vector is brought to one length L first (in units of features), so one sample changes n by 1, S by L and
G = sum x x^T by L^2 in Frobenius norm, whatever it is. Noise is independent in each number, with standard deviations

    n_c: z / sqrt(s_n)      S_ci: z L / sqrt(s_S)      G_ii: z L^2 / sqrt(s_G), off the diagonal that / sqrt(2)

and s_n + s_S + s_G = 1. Off the diagonal each number stands for two entries of G, which a sample moves together:
|| x x^T ||_F^2 = sum_i x_i^4 + 2 sum_i<j x_i^2 x_j^2, so the squared distance in units of the noise is
s_n / z^2 + s_S / z^2 + s_G / z^2 = 1 / z^2 exactly, and the joint release is a Gaussian mechanism of noise multiplier z
(noise on all d (d + 1) / 2 numbers alike would need sqrt(2) more off the diagonal for the same promise).

Sums are integers, and so is the noise: a Gaussian rounded to whole numbers. For an integer q, q + round(x) is
round(q + x), so what is released is a function of the continuous mechanism's result, whose analysis holds as it is
(a discrete Gaussian, Canonne, Kamath & Steinke 2020, would buy nothing). The noise is drawn without knowing q and
added exactly (float64 adds integers below 2^53 exactly), so that no pattern of low bits tells the sum (Mironov 2012).
What is left of floating point is the distance of Box-Muller on 53 bits from a true
Gaussian, rounded: no value beyond 8.5 standard deviations (probability 2e-17 a number), and relative errors of some
2^-50: with 1e6 numbers at most about 1e-9 is to be added to delta, which is declared by orders of magnitude above.

All randomness is the operating system's generator (os.urandom), bit for bit: nothing is seeded, no state exists that
could be kept, and no one who holds files of the past can draw the noise again.

Axes: B samples, C classes, d features.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from everlearn.values import FeatureScale, QuantisedBd

Float = npt.NDArray[np.float64]

SHARES: Final = (0.05, 0.65, 0.30)
"""s_n, s_S, s_G. Measured on scikit-learn's digits at epsilon 8 to 1: G bears more noise than S, since the ridge damps
it; equal shares cost 3 points at epsilon 1."""
_RMS_SHARE: Final = 8
"""L is such that a vector of equal values takes this part of the grid's range: peaks of so many times the root mean
square do not saturate, and rounding stays below half a percent of a value."""
_BITS: Final = 53


def normals(count: int) -> Float:
    """Independent standard normal numbers from the system's generator (Box & Muller 1958)."""
    pairs = -(-count // 2)
    bits_2P = np.frombuffer(os.urandom(16 * pairs), np.uint64).reshape(2, pairs) >> np.uint64(64 - _BITS)
    radius_P = np.sqrt(-2.0 * np.log((bits_2P[0] + 1.0) * 2.0**-_BITS))  # in (0, 1]: no logarithm of 0
    angle_P = bits_2P[1] * (2.0 * math.pi * 2.0**-_BITS)
    return np.concatenate([radius_P * np.cos(angle_P), radius_P * np.sin(angle_P)])[:count]


def whole_normals(std: Float) -> Float:
    """Independent normal numbers of these standard deviations, rounded to whole ones; their shape is `std`'s."""
    return np.rint(normals(std.size).reshape(std.shape) * std)


@dataclass(frozen=True, kw_only=True)
class SumsMechanism:
    """How sums on one feature scale are bounded and hidden."""

    scale: FeatureScale

    @property
    def length(self) -> float:
        """L: of every feature vector that is learned, in units of features."""
        return self.scale.limit * float(np.linalg.norm(self.scale.step_d.astype(np.float64))) / _RMS_SHARE

    def bounded(self, quantised_Bd: QuantisedBd) -> QuantisedBd:
        """Each vector at length L, or somewhat shorter where it is rounded or saturates; never longer. One of length 0
        stays."""
        step_d = self.scale.step_d.astype(np.float64)
        features_Bd = quantised_Bd.astype(np.float64) * step_d
        length_B1 = np.linalg.norm(features_Bd, axis=1, keepdims=True)
        # Towards 0, with a margin for the rounding of this very line: longer than L no vector may be.
        factor_B1 = self.length * (1 - 1e-12) / np.maximum(length_B1, 1e-300)
        grid_Bd = np.clip(np.trunc(features_Bd * factor_B1 / step_d), -self.scale.limit, self.scale.limit)
        bounded_Bd: QuantisedBd = grid_Bd.astype(np.int16)
        return bounded_Bd

    def stds(self, noise: float, classes: int) -> tuple[Float, Float, Float]:
        """Of the noise on n [C], S [C, d] and the lower triangle of G [d, d] (0 above the diagonal), in the integers'
        units. `noise` is z."""
        count, total, gram = (noise / math.sqrt(share) for share in SHARES)
        relative_d = self.length / self.scale.step_d.astype(np.float64)
        off_dd = np.tril(np.outer(relative_d, relative_d)) * (gram / math.sqrt(2))
        off_dd[np.diag_indices_from(off_dd)] *= math.sqrt(2)
        return np.full(classes, count), np.tile(total * relative_d, (classes, 1)), off_dd

    def draw(self, noise: float, classes: int) -> tuple[Float, Float, Float]:
        """Noise for one release: n, S, lower triangle of G. Never the same twice."""
        count_C, sum_Cd, lower_dd = self.stds(noise, classes)
        rows, columns = np.tril_indices(len(lower_dd))
        lower_dd[rows, columns] = whole_normals(lower_dd[rows, columns])
        return whole_normals(count_C), whole_normals(sum_Cd), lower_dd
