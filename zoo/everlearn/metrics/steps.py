"""Accuracy on each step of a stream after each step: for streams that have steps, such as benchmarks.

A server's stream has none. Counts only; the definitions are those of `forgetting.py`. T steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from everlearn.errors import DataLossError, InvalidError
from everlearn.metrics.forgetting import (
    average_accuracy,
    average_incremental_accuracy,
    backward_transfer,
    forgetting,
)


class Steps:
    """Counts what was right on the test set of step `on` once the learner had learned up to step `after`.

    >>> steps = Steps()
    >>> steps.add(after=0, on=0, tested=10, correct=9)
    >>> steps.add(after=1, on=0, tested=10, correct=5)
    >>> steps.add(after=1, on=1, tested=10, correct=8)
    >>> steps.summary()["forgetting"], steps.summary()["average_accuracy"]
    (0.4, 0.65)
    """

    def __init__(self) -> None:
        self._counts: dict[tuple[int, int], tuple[int, int]] = {}

    def add(self, *, after: int, on: int, tested: int, correct: int) -> None:
        """Adds counts; steps count from 0. Raises InvalidError for counts that cannot be, or a step not learned yet."""
        if not (0 <= correct <= tested and tested > 0):
            raise InvalidError(
                f"{correct} right of {tested} tested; it must be 0 to all of at least 1", field="correct"
            )
        if not 0 <= on <= after:
            raise InvalidError(f"step {on} after step {after}; only what has been learned counts", field="on")
        before = self._counts.get((after, on), (0, 0))
        self._counts[after, on] = (before[0] + tested, before[1] + correct)

    def accuracy(self) -> npt.NDArray[np.float64]:
        """R [T, T]; NaN where nothing was tested."""
        size = 1 + max((after for after, _ in self._counts), default=-1)
        accuracy_TT = np.full((size, size), np.nan)
        for (after, on), (tested, correct) in self._counts.items():
            accuracy_TT[after, on] = correct / tested
        return accuracy_TT

    def summary(self) -> dict[str, float]:
        """By name, each as its function defines it. Raises InvalidError where a seen step has not been tested."""
        accuracy_TT = self.accuracy()
        return {
            "average_accuracy": average_accuracy(accuracy_TT),
            "average_incremental_accuracy": average_incremental_accuracy(accuracy_TT),
            "forgetting": forgetting(accuracy_TT),
            "backward_transfer": backward_transfer(accuracy_TT),
        }

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {"counts": [[*cell, *counts] for cell, counts in sorted(self._counts.items())]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """What `to_dict` wrote. Raises DataLossError for anything else."""
        made = cls()
        try:
            for after, on, tested, correct in data["counts"]:
                made.add(after=int(after), on=int(on), tested=int(tested), correct=int(correct))
        except (KeyError, TypeError, ValueError, InvalidError) as error:
            raise DataLossError(f"not a record of steps: {error!r}") from error
        return made
