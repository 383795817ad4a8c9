"""What one learning stream is to be told, and the order in which it is."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass

from everlearn_server.engine.batches import Outcome


@dataclass(frozen=True, kw_only=True)
class Received:
    """A batch is in RAM (or was refused: `outcome.refusal`)."""

    outcome: Outcome
    decode_ms: float
    queue_ms: float
    trunk_ms: float


@dataclass(frozen=True, kw_only=True)
class DurableUpTo:
    """Everything up to `sequence` is committed."""

    sequence: int
    commit_id: int
    version: int


Event = Received | DurableUpTo


class Outbox:
    """What the client is to be told, in order. A client that does not read holds up a bounded number of events: answers
    are bounded by the credits, and of the watermarks only the oldest that waits and the newest are kept."""

    def __init__(self) -> None:
        self._waiting: deque[Event | BaseException | None] = deque()
        self._filled = asyncio.Event()

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, event: Event | BaseException | None) -> None:
        """Appends it; a watermark replaces the newest one that waits behind another."""
        if isinstance(event, DurableUpTo):
            marks = [waiting for waiting in self._waiting if isinstance(waiting, DurableUpTo)]
            if len(marks) > 1:  # the oldest keeps its place, or a slow reader would never hear of any
                self._waiting.remove(marks[-1])
        self._waiting.append(event)
        self._filled.set()

    async def get(self) -> Event | BaseException | None:
        """The oldest, once there is one."""
        while not self._waiting:
            self._filled.clear()
            await self._filled.wait()
        return self._waiting.popleft()
