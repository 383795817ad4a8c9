"""Accuracy over the course of a stream, at evenly spaced points whose number stays bounded.

Each point holds (samples tested, of those right) since the beginning, so any two of them give the accuracy in between.
When there are more than MAX_POINTS, every second one goes and the spacing doubles.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Self

MAX_POINTS: Final = 200
_FIRST_SPACING: Final = 16


class LearningCurve:
    """Points are at least `spacing` samples apart; between 100 and 200 of them once a stream is long.

    >>> curve = LearningCurve()
    >>> for batch in range(1, 9):
    ...     curve.extend(16 * batch, 12 * batch)
    >>> curve.points[:2], curve.spacing
    ([(16, 12), (32, 24)], 16)
    """

    def __init__(self) -> None:
        self.points: list[tuple[int, int]] = []
        self.spacing = _FIRST_SPACING

    def extend(self, tested: int, correct: int) -> None:
        """Where the stream is after a batch: counts since its beginning."""
        if tested - (self.points[-1][0] if self.points else 0) < self.spacing:
            return
        self.points.append((tested, correct))
        if len(self.points) > MAX_POINTS:
            self.points = self.points[1::2]
            self.spacing *= 2

    def rows(self, tested: int, correct: int) -> list[tuple[int, float, float]]:
        """(samples, accuracy since the beginning, accuracy since the point before), up to where the stream is now."""
        rows = []
        before = (0, 0)
        ended = bool(self.points) and self.points[-1][0] == tested
        for here in [*self.points, *([] if ended or not tested else [(tested, correct)])]:
            since = (here[1] - before[1]) / (here[0] - before[0])
            rows.append((here[0], here[1] / here[0], since))
            before = here
        return rows

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, MAX_POINTS at most."""
        return {"spacing": self.spacing, "points": [list(point) for point in self.points]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """What `to_dict` wrote. Raises KeyError, TypeError or ValueError for anything else."""
        made = cls()
        made.spacing = int(data["spacing"])
        made.points = [(int(tested), int(correct)) for tested, correct in data["points"]]
        before = (0, 0)
        for tested, correct in made.points:
            if tested <= before[0] or not 0 <= correct - before[1] <= tested - before[0]:
                raise ValueError("a learning curve that runs backwards")
            before = (tested, correct)
        if made.spacing < 1 or len(made.points) > MAX_POINTS:
            raise ValueError("a learning curve of another spacing or length")
        return made
