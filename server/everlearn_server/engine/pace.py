"""When a model may be committed again: commits take at most a share of the time, whatever the memory weighs."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class Pace:
    """After a commit that kept disk or processor busy for t seconds, the next one starts no sooner than t / share after
    it started: what it merely waited for is not to be waited for twice."""

    def __init__(self, share: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock`: what `timed` goes by. A thread's own, where it computes among others that hold it up; a wall clock,
        where it waits for another process."""
        self._share = share
        self._clock = clock
        self._began_s = self._may_at_s = 0.0
        self._hurry = asyncio.Event()

    async def wait(self) -> None:
        """Until a commit may start; not at all in a hurry."""
        delay_s = self._may_at_s - time.monotonic()
        if delay_s > 0:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._hurry.wait(), delay_s)
        self._began_s = time.monotonic()

    def timed(self, call: Callable[[], T]) -> tuple[T, float]:
        """What `call` gives, and how long it took."""
        begun_s = self._clock()
        given = call()
        return given, self._clock() - begun_s

    def took(self, seconds: float) -> None:
        """A commit has ended, which kept disk or processor busy for so long."""
        self._may_at_s = self._began_s + seconds / self._share

    def hurry(self) -> None:
        """Nobody waits from now on: the model is being closed."""
        self._hurry.set()
