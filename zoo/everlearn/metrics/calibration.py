"""Does a confidence of 0.8 mean right in 80 of 100 cases? Counts in fixed bins of confidence.

Confidence = the largest of softmax(scores / T) (see `probabilities.py`). With n_m samples in bin m of 15 equal ones,

    ECE = sum over m of  n_m / n * |accuracy of bin m - mean confidence of bin m|

(expected calibration error: Naeini et al. 2015; bins ((m-1)/15, m/15] as Guo et al. 2017, eq. 3).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt

from everlearn.metrics.temperature import numbers

BINS: Final = 15
"""As Guo et al. 2017 and most since: figures with another number are not comparable."""


class Reliability:
    """The reliability diagram as counts; what it says does not depend on the order of samples.

    >>> bins = Reliability()
    >>> bins.add(np.array([0.9, 0.9, 0.6]), np.array([True, False, True]))
    >>> round(bins.ece, 3), round(bins.overconfidence, 3)  # 2/3 * |0.5 - 0.9| + 1/3 * |1 - 0.6|
    (0.4, 0.133)
    """

    def __init__(self) -> None:
        self._samples_M = np.zeros(BINS, np.int64)
        self._hits_M = np.zeros(BINS, np.int64)
        self._confidence_M = np.zeros(BINS)

    def add(self, confidence_B: npt.NDArray[np.float64], hit_B: npt.NDArray[np.bool_]) -> None:
        """Counts samples by their confidence, in (0, 1]."""
        bin_B = np.clip(np.ceil(confidence_B * BINS).astype(np.intp) - 1, 0, BINS - 1)
        self._samples_M += np.bincount(bin_B, minlength=BINS)
        self._hits_M += np.bincount(bin_B[hit_B], minlength=BINS)
        self._confidence_M += np.bincount(bin_B, weights=confidence_B, minlength=BINS)

    def merge(self, other: Reliability) -> None:
        """Adds another's counts."""
        self._samples_M += other._samples_M
        self._hits_M += other._hits_M
        self._confidence_M += other._confidence_M

    @property
    def samples(self) -> int:
        """Counted so far."""
        return int(self._samples_M.sum())

    @property
    def ece(self) -> float:
        """Expected calibration error, from 0 (calibrated) to 1; 0 where nothing was counted."""
        samples = self.samples
        return float(np.abs(self._hits_M - self._confidence_M).sum()) / samples if samples else 0.0

    @property
    def overconfidence(self) -> float:
        """Mean confidence minus accuracy: above 0 it promises too much. 0 where nothing was counted."""
        samples = self.samples
        return float(self._confidence_M.sum() - self._hits_M.sum()) / samples if samples else 0.0

    def bins(self) -> list[tuple[int, float, float]]:
        """(samples, mean confidence, accuracy) of each bin, for a diagram; 0 where a bin is empty."""
        some_M = np.maximum(self._samples_M, 1)
        rows = zip(self._samples_M, self._confidence_M / some_M, self._hits_M / some_M, strict=True)
        return [(int(samples), float(confidence), float(accuracy)) for samples, confidence, accuracy in rows]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, of fixed size."""
        return {
            "samples": self._samples_M.tolist(),
            "hits": self._hits_M.tolist(),
            "confidence": self._confidence_M.tolist(),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """What `to_dict` wrote. Raises KeyError, TypeError or ValueError for anything else."""
        made = cls()
        made._samples_M = numbers(data["samples"], (BINS,)).astype(np.int64)
        made._hits_M = numbers(data["hits"], (BINS,)).astype(np.int64)
        made._confidence_M = numbers(data["confidence"], (BINS,))
        if (made._hits_M > made._samples_M).any() or (made._hits_M < 0).any():
            raise ValueError("more samples are right than there are in a bin of confidence")
        return made
