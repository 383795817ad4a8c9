"""What a stream forgets, where its clients say which step (task, experience, domain, season) a batch belongs to.

R[i, j] is the accuracy on samples of step j while step i was the newest that had begun, from test-then-train: no test
set is kept, so a step is tested again only when its data come again, and other cells are not known. Two things would
hide what was forgotten, and are left out:

    R[j, j]         the beginning of a step, when it is not learned yet: the newest END to 2 END samples count that came
                    before a newer step began, for they show what was known at its end
    R[i, j], i > j  the rest of a return, when the step is learned again: the first RETURN samples count (whole batches)
                    each time that the step comes again

Figures are those of `forgetting.py` over the steps that came again, each with its newest known row in the place of the
last one; where every cell is known they are the same. Counts only. T steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt

from everlearn.errors import DataLossError, InputError, InvalidError

MAX_STEPS: Final = 64
"""Of one model: cells grow with their square."""
END: Final = 100
"""Samples in a pane: one or two of them make R[j, j]."""
RETURN: Final = 64
"""Samples that count each time a step comes again: two batches of usual size."""
VERSION: Final = 1
_NOWHERE: Final = -1


class Steps:
    """Counts what was right on samples of each step, by the newest step at the time.

    >>> steps = Steps()
    >>> for step, correct in (("summer", 9), ("winter", 8), ("summer", 5)):
    ...     steps.count(step, tested=10, correct=correct)
    >>> steps.summary()["forgetting"], steps.summary()["average_accuracy"]
    (0.4, 0.65)
    """

    def __init__(self) -> None:
        self._names: list[str] = []
        self._samples: list[int] = []
        self._cells: dict[tuple[int, int], tuple[int, int]] = {}
        """(after, on) -> (tested, correct)."""
        self._panes = [(0, 0), (0, 0)]
        """Of the newest step: what fills R[T, T]."""
        self._last = _NOWHERE
        """The step of the batch before, and how many samples of it came in a row."""
        self._in_a_row = 0

    def __len__(self) -> int:
        return len(self._names)

    @property
    def names(self) -> tuple[str, ...]:
        """In the order in which they began."""
        return tuple(self._names)

    @property
    def samples(self) -> int:
        """That named a step."""
        return sum(self._samples)

    def refusal(self, step: str) -> InvalidError | None:
        """Why a batch of this step cannot be counted; None where it can."""
        if not step or step in self._names or len(self._names) < MAX_STEPS:
            return None
        return InputError(
            f"{step!r} would be step {MAX_STEPS + 1} of this model; {MAX_STEPS} are kept: name one of those it has, or "
            "none",
            field="batch.step",
        )

    def count(self, step: str, *, tested: int, correct: int) -> None:
        """Adds a batch that was tested before it is learned; an empty name is no step, an empty batch begins none.

        Raises InvalidError for counts that cannot be, or a step too many; then nothing is counted.
        """
        if not 0 <= correct <= tested:
            raise InvalidError(f"{correct} right of {tested} tested; it must be 0 to all of them", field="correct")
        if (refusal := self.refusal(step)) is not None:
            raise refusal
        if not tested:
            return
        if not step:
            self._last = _NOWHERE
            return
        if step not in self._names:
            self._begin(step)
        on, newest = self._names.index(step), len(self._names) - 1
        self._in_a_row = self._in_a_row if on == self._last else 0
        self._samples[on] += tested
        if on == newest:
            self._fill_panes(tested, correct)
        elif self._in_a_row < RETURN:
            self._cells[newest, on] = _sum(self._cells.get((newest, on), (0, 0)), (tested, correct))
        self._last, self._in_a_row = on, self._in_a_row + tested

    def accuracy(self) -> npt.NDArray[np.float64]:
        """R [T, T]; NaN where nothing was tested."""
        accuracy_TT = np.full((len(self), len(self)), np.nan)
        for (after, on), (tested, correct) in self._cells.items():
            accuracy_TT[after, on] = correct / tested
        return accuracy_TT

    def summary(self) -> dict[str, Any]:
        """How many steps there are, and how many of the earlier ones were tested again. Where any was, means over them:
        `forgetting`, `backward_transfer`; and over them and the newest step: `average_accuracy`."""
        accuracy_TT = self.accuracy()
        again = _tested_again(accuracy_TT)
        found: dict[str, Any] = {"count": len(self), "tested_again": len(again)}
        if not again:
            return found
        now = [accuracy_TT[after, on] for on, after in again.items()]
        return found | {
            "average_accuracy": float(np.mean([*now, accuracy_TT[-1, -1]])),
            "forgetting": float(np.mean([_forgotten(accuracy_TT, on, after) for on, after in again.items()])),
            "backward_transfer": float(np.mean([accuracy_TT[i, j] - accuracy_TT[j, j] for j, i in again.items()])),
        }

    def report(self) -> dict[str, Any]:
        """The summary, each step, and the counts behind R; names are those of the wire's StepsReport."""
        accuracy_TT = self.accuracy()
        again = _tested_again(accuracy_TT)
        rows = []
        for on, name in enumerate(self._names):
            row = {"name": name, "samples": self._samples[on], "accuracy": float(accuracy_TT[on, on])}
            if on in again:
                row["accuracy_again"] = float(accuracy_TT[again[on], on])
                row["after"] = self._names[again[on]]
                row["forgetting"] = _forgotten(accuracy_TT, on, again[on])
            rows.append(row)
        cells = [
            {"after": after, "on": on, "tested": tested, "correct": correct}
            for (after, on), (tested, correct) in sorted(self._cells.items())
        ]
        return self.summary() | {"steps": rows, "cells": cells}

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; what reads it goes on as this would."""
        return {
            "version": VERSION,
            "names": list(self._names),
            "samples": list(self._samples),
            "cells": [[*cell, *counts] for cell, counts in sorted(self._cells.items())],
            "panes": [list(pane) for pane in self._panes],
            "last": self._last,
            "in_a_row": self._in_a_row,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """What `to_dict` wrote. Raises DataLossError for anything else."""
        made = cls()
        try:
            if data["version"] != VERSION:
                raise ValueError(f"version {data['version']}; this release reads version {VERSION}")
            made._names = [str(name) for name in data["names"]]
            made._samples = [int(samples) for samples in data["samples"]]
            for after, on, tested, correct in data["cells"]:
                made._cells[int(after), int(on)] = (int(tested), int(correct))
            made._panes = [(int(tested), int(correct)) for tested, correct in data["panes"]]
            made._last, made._in_a_row = int(data["last"]), int(data["in_a_row"])
        except (KeyError, TypeError, ValueError) as error:
            raise DataLossError(f"not a record of steps: {error!r}") from error
        if not made._adds_up():
            raise DataLossError("a record of steps whose counts do not add up")
        return made

    def _begin(self, step: str) -> None:
        self._names.append(step)
        self._samples.append(0)
        self._panes = [(0, 0), (0, 0)]

    def _fill_panes(self, tested: int, correct: int) -> None:
        before, present = self._panes
        if present[0] >= END:
            before, present = present, (0, 0)
        self._panes = [before, _sum(present, (tested, correct))]
        newest = len(self._names) - 1
        self._cells[newest, newest] = _sum(*self._panes)

    def _adds_up(self) -> bool:
        count = len(self._names)
        tested_T = [0] * count
        for (after, on), (tested, correct) in self._cells.items():
            if not (0 <= on <= after < count and 0 <= correct <= tested and tested > 0):
                return False
            tested_T[on] += tested
        return (
            len(set(self._names)) == len(self._samples) == count <= MAX_STEPS
            and all((on, on) in self._cells for on in range(count))
            and all(tested <= samples for tested, samples in zip(tested_T, self._samples, strict=True))
            and (not count or _sum(*self._panes) == self._cells[count - 1, count - 1])
            and _NOWHERE <= self._last < count
            and self._in_a_row >= 0
        )


def _sum(one: tuple[int, int], other: tuple[int, int]) -> tuple[int, int]:
    return one[0] + other[0], one[1] + other[1]


def _tested_again(accuracy_TT: npt.NDArray[np.float64]) -> dict[int, int]:
    """Step -> the newest later row that knows it."""
    known_TT = ~np.isnan(accuracy_TT)
    found = {}
    for on in range(len(accuracy_TT)):
        rows = np.flatnonzero(known_TT[on + 1 :, on])
        if rows.size:
            found[on] = on + 1 + int(rows[-1])
    return found


def _forgotten(accuracy_TT: npt.NDArray[np.float64], on: int, after: int) -> float:
    """The best that was known before, minus what is known now (Chaudhry et al. 2018, eq. 3)."""
    return float(np.nanmax(accuracy_TT[on:after, on]) - accuracy_TT[after, on])
