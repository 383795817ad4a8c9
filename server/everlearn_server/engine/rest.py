"""Notices that a stream rests."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable

import structlog

_logger = structlog.get_logger(__name__)


class Rest:
    """Calls `then` once nobody has begun anew for a while. Event loop only."""

    def __init__(self, then: Callable[[], Awaitable[None]]) -> None:
        self._then = then
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None

    def begin(self, after_s: float) -> None:
        """Waits from now on, where that is not for ever; an earlier wait is over."""
        if self._timer is not None:
            self._timer.cancel()
        if math.isfinite(after_s):
            self._timer = asyncio.get_running_loop().call_later(after_s, self._due)

    def end(self) -> None:
        """Waits no more; what has begun goes on to its end."""
        if self._timer is not None:
            self._timer.cancel()

    def _due(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._call())

    async def _call(self) -> None:
        try:
            await self._then()
        except Exception:  # the next batch begins another wait
            _logger.exception("what waited for a rest has failed")
