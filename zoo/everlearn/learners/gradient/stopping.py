"""When steps cease because they no longer help, by accuracy on batches that were not yet learned."""

from __future__ import annotations

from collections import deque
from typing import Any

WINDOW_BATCHES = 20
"""Batches that an accuracy is taken over."""


class Patience:
    """Early stopping without held-out data (Prechelt 1998, on the prequential record).

    `batches` without a better windowed accuracy, and steps cease; once it falls below what it was then, they go on.

    >>> patience = Patience(batches=2)
    >>> [patience.rests(hits, 10) for hits in (5, 5, 5, 0)]
    [False, False, True, False]
    """

    def __init__(self, batches: int | None) -> None:
        self.batches = batches
        self._window: deque[tuple[int, int]] = deque(maxlen=WINDOW_BATCHES)
        self._best = -1.0
        self._since = 0
        self._paused_at: float | None = None

    def rests(self, hits: int, rows: int) -> bool:
        """Whether the batch with this prequential result needs no steps."""
        if self.batches is None:
            return False
        self._window.append((hits, rows))
        accuracy = sum(hit for hit, _ in self._window) / max(sum(row for _, row in self._window), 1)
        if self._paused_at is not None and accuracy < self._paused_at:
            self._best, self._since, self._paused_at = accuracy, 0, None
        elif accuracy > self._best:
            self._best, self._since = accuracy, 0
        else:
            self._since += 1
        if self._since >= self.batches and self._paused_at is None:
            self._paused_at = accuracy
        return self._paused_at is not None

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
        self._window = deque(((int(hits), int(rows)) for hits, rows in numbers["window"]), maxlen=WINDOW_BATCHES)
        self._best, self._since, self._paused_at = numbers["best"], int(numbers["since"]), numbers["paused_at"]
