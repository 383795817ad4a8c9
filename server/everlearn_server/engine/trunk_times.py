"""What an image costs on each trunk: the seconds of its last forward passes. Thread-safe."""

from __future__ import annotations

import statistics
import threading
import weakref
from collections import deque
from typing import Final

KEPT: Final = 256
"""Images a median is taken over: enough to outvote the slow first ones, few enough to follow the machine."""


class TrunkTimes:
    """Seconds an image, by session; a session that nobody holds any more is forgotten.

    >>> class Session: ...
    >>> session, times = Session(), TrunkTimes()
    >>> times.median_s(session)
    (None, 0)
    >>> for seconds in (9.0, 1.0, 2.0):
    ...     times.note(session, seconds)
    >>> times.median_s(session)
    (2.0, 3)
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seconds: weakref.WeakKeyDictionary[object, deque[float]] = weakref.WeakKeyDictionary()

    def note(self, session: object, each_s: float, images: int = 1) -> None:
        """A pass of `images` took `each_s` for each of them."""
        with self._lock:
            self._seconds.setdefault(session, deque(maxlen=KEPT)).extend([each_s] * images)

    def median_s(self, session: object) -> tuple[float | None, int]:
        """Median over the last images and how many those are; None where none has passed."""
        with self._lock:
            seconds = list(self._seconds.get(session, ()))
        return (statistics.median(seconds) if seconds else None), len(seconds)
