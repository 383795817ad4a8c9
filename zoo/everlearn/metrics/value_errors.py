"""How predicted values compare with the true ones, per output of a regression.

    MAE = mean |y - p|      RMSE = sqrt(mean (y - p)^2)      R2 = 1 - sum (y - p)^2 / sum (y - mean y)^2

R2 as scikit-learn's `r2_score` on the same samples (Draper & Smith 1998): 1 is perfect, 0 is what the mean alone says,
below 0 it is worse than that. Samples that no head predicted are not counted. Axes: B samples, K outputs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt

from everlearn.errors import InputError
from everlearn.metrics.temperature import numbers
from everlearn.truth import Truth, Values

_SUMS: Final = ("mean", "spread", "absolute", "square")


class ValueErrors:
    """Sums over some set of samples.

    >>> truth = Values(np.array([[1.0], [2.0], [3.0]]))
    >>> errors = ValueErrors.of(truth, np.array([[1.5], [2], [3]], np.float32), ("metres",))
    >>> told = errors.figures()["outputs"][0]
    >>> round(told["mae"], 3), round(told["rmse"], 3), told["r2"]
    (0.167, 0.289, 0.875)
    """

    def __init__(self) -> None:
        self.samples = 0
        self._names: tuple[str, ...] = ()
        self._sums_SK = np.zeros((len(_SUMS), 0))
        """Mean of y, sum (y - mean)^2, sum |error|, sum error^2."""

    @classmethod
    def of(cls, truth: Truth, scores_BC: npt.NDArray[np.float32] | None, known: Sequence[str]) -> Self:
        """Of a batch; nothing where there was no head. Raises InputError for truth of another kind or shape."""
        if not isinstance(truth, Values):
            raise InputError("this model learns values; send one for each output", field="values")
        errors = cls()
        if scores_BC is None or not len(truth):
            return errors
        if scores_BC.shape != truth.values_BK.shape:
            raise InputError(f"values have shape {truth.values_BK.shape}, not {scores_BC.shape}", field="values")
        true_BK = truth.values_BK.astype(np.float64)
        error_BK = true_BK - scores_BC
        errors.samples, errors._names = len(true_BK), tuple(known)
        mean_K = true_BK.mean(axis=0)
        errors._sums_SK = np.stack(
            [mean_K, ((true_BK - mean_K) ** 2).sum(0), np.abs(error_BK).sum(0), (error_BK**2).sum(0)]
        )
        return errors

    @property
    def correct(self) -> int:
        """Values are never exactly right."""
        return 0

    @property
    def accuracy(self) -> float:
        """R2, mean over the outputs, 0 where that is negative or unknown."""
        return max(0.0, self._mean_r2() or 0.0)

    @classmethod
    def accuracy_of(cls, parts: Iterable[Self]) -> float:
        """Of all of them together."""
        together = cls()
        for part in parts:
            together.merge(part)
        return together.accuracy

    @property
    def mix(self) -> Mapping[str, int]:
        """Values have no labels."""
        return {}

    def merge(self, other: Self) -> None:
        """Adds another's sums (Chan, Golub & LeVeque 1979 for the spread)."""
        if not other.samples:
            return
        if not self.samples:
            self.samples, self._names, self._sums_SK = other.samples, other._names, other._sums_SK.copy()
            return
        apart_K, samples = other._sums_SK[0] - self._sums_SK[0], self.samples + other.samples
        self._sums_SK[0] += apart_K * other.samples / samples
        self._sums_SK[1:] += other._sums_SK[1:]
        self._sums_SK[1] += apart_K**2 * self.samples * other.samples / samples
        self.samples = samples

    def figures(self) -> dict[str, Any]:
        """Names as on the wire; R2 is left out where the true values do not vary."""
        found: dict[str, Any] = {"samples": self.samples, "accuracy": self.accuracy, "outputs": self._rows()}
        mean_r2 = self._mean_r2()
        return found | ({"r2": mean_r2} if mean_r2 is not None else {})

    def details(self, most: int, now: Self) -> dict[str, Any]:
        """All there is lies in the figures."""
        return {}

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        sums = {name: row.tolist() for name, row in zip(_SUMS, self._sums_SK, strict=True)}
        return {"samples": self.samples, "names": list(self._names), **sums}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """What `to_dict` wrote. Raises KeyError, TypeError or ValueError for anything else."""
        errors = cls()
        errors.samples, errors._names = int(data["samples"]), tuple(str(name) for name in data["names"])
        errors._sums_SK = np.stack([numbers(data[name], (len(errors._names),)) for name in _SUMS])
        if errors.samples < 0 or (errors._sums_SK[1:] < 0).any():
            raise ValueError("errors below zero")
        return errors

    def _r2(self, output: int) -> float | None:
        _, spread, _, square = self._sums_SK[:, output]
        return 1 - float(square / spread) if spread > 0 else None

    def _mean_r2(self) -> float | None:
        known = [r2 for r2 in map(self._r2, range(len(self._names))) if r2 is not None]
        return sum(known) / len(known) if known else None

    def _rows(self) -> list[dict[str, Any]]:
        rows = []
        for output, name in enumerate(self._names):
            _, _, absolute, square = self._sums_SK[:, output]
            row: dict[str, Any] = {
                "name": name,
                "mae": float(absolute) / self.samples,
                "rmse": math.sqrt(float(square) / self.samples),
            }
            r2 = self._r2(output)
            rows.append(row | ({"r2": r2} if r2 is not None else {}))
        return rows
