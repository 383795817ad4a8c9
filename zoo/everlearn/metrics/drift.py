"""Has what comes in changed? Of features from sums, of the label mix from counts; each against what came before.

Features: their norm, and 8 projections phi . r / sqrt(d) with fixed random signs r (Achlioptas 2003: such projections
keep distances). For each the standardised mean difference between the window and what came before it,

    shift = |mean_window - mean_before| / sd_before                                        (Glass 1976, Glass's delta)

An effect size, not a test: neighbours in a stream resemble each other, so a significance would be far too sure.
About 0.2 is small, above 0.8 large (Cohen 1988).

Label mix: Jensen-Shannon distance between two sets of label counts (Lin 1991; Endres & Schindelin 2003), base 2:
0 = the same shares, 1 = no label in common. Few samples make it large by chance, so below MIN_SAMPLES it is not given.
Axes: B samples, d features, P projections, S = 1 + P figures.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt

from everlearn.metrics.temperature import numbers
from everlearn.values import FeaturesBd

PROJECTIONS: Final = 8
MIN_SAMPLES: Final = 30
"""Fewer say nothing of a mean or a mix."""


class FeatureMoments:
    """Count, sum and sum of squares of each figure: nothing of a single sample (but of a batch of one).

    >>> before, window = FeatureMoments(), FeatureMoments()
    >>> rng = np.random.default_rng(0)
    >>> before.add(rng.normal(0, 1, (500, 16)).astype(np.float32))
    >>> window.add(3 + rng.normal(0, 1, (500, 16)).astype(np.float32))
    >>> norm_shift, projection_shift = window.shift_from(before)
    >>> bool(norm_shift > 5 and projection_shift > 1)
    True
    """

    def __init__(self) -> None:
        self.samples = 0
        self._sum_S = np.zeros(1 + PROJECTIONS)
        self._square_S = np.zeros(1 + PROJECTIONS)

    def add(self, features_Bd: FeaturesBd) -> None:
        """Adds samples; features must be finite."""
        wide_Bd = features_Bd.astype(np.float64)  # a square of a large float32 is none
        norm_B1 = np.linalg.norm(wide_Bd, axis=1, keepdims=True)
        figure_BS = np.hstack([norm_B1, wide_Bd @ _signs(wide_Bd.shape[1])])
        self.samples += len(features_Bd)
        self._sum_S += figure_BS.sum(axis=0)
        self._square_S += np.square(figure_BS).sum(axis=0)

    def merge(self, other: FeatureMoments) -> None:
        """Adds another's sums."""
        self.samples += other.samples
        self._sum_S += other._sum_S
        self._square_S += other._square_S

    def without(self, part: FeatureMoments) -> FeatureMoments:
        """What remains when a part of it is taken out."""
        rest = FeatureMoments()
        rest.samples = self.samples - part.samples
        rest._sum_S = self._sum_S - part._sum_S
        rest._square_S = self._square_S - part._square_S
        return rest

    @property
    def mean_norm(self) -> float:
        """Mean length of a feature vector; 0 where nothing was added."""
        return float(self._sum_S[0]) / self.samples if self.samples else 0.0

    def shift_from(self, before: FeatureMoments) -> tuple[float, float] | None:
        """(of the norm, root mean square over the projections), in standard deviations of `before`.

        None where either has fewer than MIN_SAMPLES.
        """
        if min(self.samples, before.samples) < MIN_SAMPLES:
            return None
        mean_S = before._sum_S / before.samples
        deviation_S = np.sqrt(np.maximum(before._square_S / before.samples - mean_S**2, 0))
        # A figure that never varied has no unit; rounding alone makes its difference.
        floor_S = 1e-6 * np.maximum(np.abs(mean_S), 1e-12)
        shift_S = np.abs(self._sum_S / self.samples - mean_S) / np.maximum(deviation_S, floor_S)
        return float(shift_S[0]), float(np.sqrt(np.mean(shift_S[1:] ** 2)))

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, of fixed size."""
        return {"samples": self.samples, "sum": self._sum_S.tolist(), "square": self._square_S.tolist()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """What `to_dict` wrote. Raises KeyError, TypeError or ValueError for anything else."""
        made = cls()
        made.samples = int(data["samples"])
        made._sum_S = numbers(data["sum"], (1 + PROJECTIONS,))
        made._square_S = numbers(data["square"], (1 + PROJECTIONS,))
        return made


def label_distance(one: Mapping[str, int], other: Mapping[str, int]) -> float | None:
    """Jensen-Shannon distance of two label mixes, in [0, 1]; None where either has fewer than MIN_SAMPLES.

    >>> label_distance({"cat": 50}, {"dog": 70}), label_distance({"cat": 50}, {"cat": 30})
    (1.0, 0.0)
    """
    one_n, other_n = sum(one.values()), sum(other.values())
    if min(one_n, other_n) < MIN_SAMPLES:
        return None
    divergence = 0.0
    for label in one.keys() | other.keys():
        p, q = one.get(label, 0) / one_n, other.get(label, 0) / other_n
        middle = (p + q) / 2
        divergence += sum(share * math.log2(share / middle) for share in (p, q) if share) / 2
    return math.sqrt(min(max(divergence, 0.0), 1.0))


@lru_cache(maxsize=16)
def _signs(dim: int) -> npt.NDArray[np.float64]:
    """float64 [d, P] of +-1 / sqrt(d), the same on every machine and with every release of NumPy."""
    bits = np.frombuffer(hashlib.shake_128(b"everlearn drift").digest(dim * PROJECTIONS // 8), np.uint8)
    signs_dP = np.unpackbits(bits).reshape(dim, PROJECTIONS).astype(np.float64) * 2 - 1
    return signs_dP / math.sqrt(dim)
