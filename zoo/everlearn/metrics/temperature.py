"""The temperature that makes softmax(scores / T) least surprised by the stream (Guo et al. 2017, section 4.2).

Guo et al. fit T on held-out data. Here nothing is held out or kept: each sample is scored before it is learned, which
makes it held out at that moment, and only sums stay: on a fixed grid of inverse temperatures b = 1/T, the log-loss

    L(b) = sum over samples of  ln(sum_c exp(b s_c)) - b s_y          and its slope dL/db

L is convex in b. So its minimum lies between the two grid points where the slope changes its sign, and is taken there
to be that of the cubic through both points' values and slopes (Nocedal & Wright 2006, eq. 3.59), in ln b.
The sums do not depend on the order of samples, and those of two streams add up. Axes: B samples, C classes, K grid.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt

from everlearn.metrics.probabilities import margins

FIRST_EXPONENT: Final = -8
LAST_EXPONENT: Final = 10
INVERSE_K: Final = 2.0 ** np.arange(FIRST_EXPONENT, LAST_EXPONENT + 1)
"""Inverse temperatures: T from 256 (scores in the hundreds) down to 1/1024 (scores that hardly differ)."""
_AT_ONCE: Final = 2**16
"""Numbers of several grid points that are made in one go: small batches cost calls more than they cost arithmetic."""
MIN_SAMPLES: Final = 100
"""Fewer do not fix one number: T is then not known."""


class LossByTemperature:
    """Log-loss on the grid, summed; the temperature that is best for all that was added.

    >>> losses = LossByTemperature()
    >>> losses.add(np.tile(np.array([[1.0, 0.0]], np.float32), (100, 1)), np.array([0] * 75 + [1] * 25))
    >>> round(1 / losses.fit(), 1)  # 75 % right at a margin of 1: ln 3 = 1.0986
    1.1
    """

    def __init__(self) -> None:
        self.samples = 0
        self._loss_K = np.zeros(INVERSE_K.size)
        self._slope_K = np.zeros(INVERSE_K.size)

    @classmethod
    def of(cls, parts: Sequence[LossByTemperature]) -> Self:
        """All of them together; they stay as they are."""
        made = cls()
        made.samples = sum(part.samples for part in parts)
        made._loss_K = np.add.reduce([part._loss_K for part in parts])
        made._slope_K = np.add.reduce([part._slope_K for part in parts])
        return made

    def add(self, scores_BC: npt.NDArray[np.float32], true_B: npt.NDArray[np.intp]) -> None:
        """Adds samples with the column of their true class; scores must be finite."""
        if not len(scores_BC):
            return
        self.samples += len(scores_BC)
        below_BC = margins(scores_BC)
        true_below = below_BC[np.arange(len(below_BC)), true_B].sum()
        below_CB = np.ascontiguousarray(below_BC.T)  # sums over classes are then additions of whole rows
        at_once = min(max(1, _AT_ONCE // below_CB.size), INVERSE_K.size)
        power_KCB = np.empty((at_once, *below_CB.shape))
        last_CB = np.exp(below_CB * INVERSE_K[0])
        for first in range(0, INVERSE_K.size, at_once):
            some = slice(first, min(first + at_once, INVERSE_K.size))
            power_KCB[0] = last_CB * last_CB if first else last_CB
            for k in range(1, some.stop - first):  # b doubles from one grid point to the next
                np.multiply(power_KCB[k - 1], power_KCB[k - 1], out=power_KCB[k])
            made_KCB = power_KCB[: some.stop - first]
            last_CB = made_KCB[-1].copy()
            total_KB = made_KCB.sum(axis=1)
            made_KCB *= below_CB
            mean_KB = made_KCB.sum(axis=1) / total_KB
            self._loss_K[some] += np.log(total_KB).sum(axis=1) - INVERSE_K[some] * true_below
            self._slope_K[some] += mean_KB.sum(axis=1) - true_below

    def merge(self, other: LossByTemperature) -> None:
        """Adds another's sums."""
        self.samples += other.samples
        self._loss_K += other._loss_K
        self._slope_K += other._slope_K

    def fit(self) -> float | None:
        """T; None before MIN_SAMPLES. Near an end of the grid where the minimum lies beyond (nothing ever wrong)."""
        if self.samples < MIN_SAMPLES:
            return None
        right = int(np.argmax(self._slope_K >= 0)) if (self._slope_K >= 0).any() else INVERSE_K.size
        if right in (0, INVERSE_K.size):
            return float(1 / INVERSE_K[min(right, INVERSE_K.size - 1)])
        return math.exp(-self._least(right - 1, right))

    def loss(self, temperature: float) -> float:
        """Mean log-loss (nats) at the grid point nearest to a temperature; 0 where nothing was added."""
        nearest = int(np.abs(np.log(INVERSE_K * temperature)).argmin())
        return float(self._loss_K[nearest]) / self.samples if self.samples else 0.0

    def _least(self, left: int, right: int) -> float:
        """ln b of the minimum between two grid points whose slopes differ in sign."""
        x0, x1 = math.log(INVERSE_K[left]), math.log(INVERSE_K[right])
        f0, f1 = float(self._loss_K[left]), float(self._loss_K[right])
        s0, s1 = float(self._slope_K[left] * INVERSE_K[left]), float(self._slope_K[right] * INVERSE_K[right])
        d1 = s0 + s1 - 3 * (f0 - f1) / (x0 - x1)
        d2 = math.sqrt(max(d1 * d1 - s0 * s1, 0.0))
        step = (s1 + d2 - d1) / (s1 - s0 + 2 * d2)
        return min(max(x1 - (x1 - x0) * step, x0), x1)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, of fixed size."""
        return {"samples": self.samples, "loss": self._loss_K.tolist(), "slope": self._slope_K.tolist()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """What `to_dict` wrote. Raises KeyError, TypeError or ValueError for anything else."""
        made = cls()
        made.samples = int(data["samples"])
        made._loss_K = numbers(data["loss"], INVERSE_K.shape)
        made._slope_K = numbers(data["slope"], INVERSE_K.shape)
        return made


def numbers(values: object, shape: tuple[int, ...]) -> npt.NDArray[np.float64]:
    """Finite numbers of a shape, read back from JSON. Raises ValueError."""
    array = np.array(values, dtype=np.float64)
    if array.shape != shape or not np.isfinite(array).all():
        raise ValueError(f"numbers of shape {array.shape}; it must be {shape}, all finite")
    return array
