"""When steps cease because they no longer help, by accuracy, or error, on batches that were not yet learned."""

from __future__ import annotations

import math
from collections import deque
from typing import Any

WINDOW_BATCHES = 20
"""Batches that a mean is taken over."""


class Patience:
    """Early stopping without held-out data (Prechelt 1998, on the prequential record).

    `batches` without a better windowed mean, and steps cease; once it falls below what it was then by more than its
    standard error, they go on. Without that margin an error, which is never twice the same, would wake at once.

    >>> patience = Patience(batches=2)
    >>> [patience.rests(hits, 10) for hits in (5, 5, 5, 0)]
    [False, False, True, False]
    """

    def __init__(self, batches: int | None) -> None:
        self.batches = batches
        self._window: deque[tuple[float, int]] = deque(maxlen=WINDOW_BATCHES)
        self._best: float | None = None
        self._since = 0
        self._paused_at: float | None = None

    def rests(self, merit: float, rows: int) -> bool:
        """Whether the batch with this prequential result needs no steps. `merit`: summed over its rows, the more the
        better: hits, or errors below zero."""
        if self.batches is None:
            return False
        self._window.append((merit, rows))
        mean = sum(each for each, _ in self._window) / max(sum(row for _, row in self._window), 1)
        if self._paused_at is not None and mean < self._paused_at:
            self._best, self._since, self._paused_at = mean, 0, None
        elif self._best is None or mean > self._best:
            self._best, self._since = mean, 0
        else:
            self._since += 1
        if self._since >= self.batches and self._paused_at is None:
            self._paused_at = mean - self._error(mean)
        return self._paused_at is not None

    def _error(self, mean: float) -> float:
        """Standard error of the windowed mean, from how its batches differ."""
        apart = [(merit / max(rows, 1) - mean) ** 2 for merit, rows in self._window]
        return math.sqrt(sum(apart)) / len(apart)

    def numbers(self) -> dict[str, Any]:
        """JSON-able, for `restore`."""
        return {
            "window": [list(pair) for pair in self._window],
            "best": self._best,
            "since": self._since,
            "paused_at": self._paused_at,
        }

    def restore(self, numbers: dict[str, Any]) -> None:
        """What `numbers` gave."""
        self._window = deque(((merit, int(rows)) for merit, rows in numbers["window"]), maxlen=WINDOW_BATCHES)
        self._best, self._since, self._paused_at = numbers["best"], int(numbers["since"]), numbers["paused_at"]
