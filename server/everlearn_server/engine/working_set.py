"""How much of what the models have learned is in RAM: of models that rest, no more than was allowed.

At d = 1280 the Gram matrix of one model takes 13 MB, and a thousand of them 13 GB, of which a few are learned from at a
time. What rests is set down: the last commit has it, and whoever needs it again waits some milliseconds for the store.
Nothing that is not durable is ever set down, so this changes nothing of what is learned, acknowledged or predicted.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from functools import partial

from everlearn.errors import EverlearnError, UnavailableError
from everlearn.runtime.malloc import give_back
from everlearn_server.engine.integration import Integration
from everlearn_server.engine.live_model import LiveModel
from everlearn_server.store.ledger import Ledger

_EVERY_S = 2.0
_MUCH_BYTES = 2**26
"""Worth to be given back to the system at once."""


class WorkingSet:
    """Least recently learned first. Event loop only."""

    def __init__(self, models: Callable[[], Iterable[LiveModel]], ledger: Ledger, *, capacity_bytes: int) -> None:
        """`models`: all there are."""
        self._models = models
        self._ledger = ledger
        self._capacity_bytes = capacity_bytes
        self._seen: dict[str, tuple[int, float]] = {}
        """Changes of each model when it was last found changed, and when that was."""
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Tends from now on."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name="working-set")

    async def close(self) -> None:
        """Lets all be as it is."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def tend(self) -> None:
        """Sets down what is beyond the capacity, as far as it rests."""
        held, freed_bytes = self._held(), 0
        excess_bytes = sum(model.writer.learner.held_bytes for model in held) - self._capacity_bytes
        for model in held:
            if freed_bytes >= excess_bytes:
                break
            freed_bytes += await self._set_down(model)
        if freed_bytes > _MUCH_BYTES:
            await asyncio.to_thread(give_back)

    def _held(self) -> list[LiveModel]:
        """Those with something to set down, least recently changed first."""
        now_s, held = time.monotonic(), list[LiveModel]()
        before, self._seen = self._seen, {}  # nothing stays of models that are gone
        for model in self._models():
            if not model.is_started:
                continue
            changes = model.writer.work.changes
            seen = before.get(model.name)
            self._seen[model.name] = seen if seen is not None and seen[0] == changes else (changes, now_s)
            if model.writer.learner.held_bytes:
                held.append(model)
        return sorted(held, key=lambda model: self._seen[model.name][1])

    async def _set_down(self, model: LiveModel) -> int:
        """Bytes that this frees: none where something is staged, or a state of its own is kept to be shown."""
        writer = model.writer
        if writer.held.hold is not None or not writer.idle:
            return 0
        try:
            return await writer.between_commits(partial(self._all_durable, model.name))
        except EverlearnError:  # it was stopped meanwhile
            return 0

    def _all_durable(self, name: str, work: Integration) -> int:
        """On the thread that owns what is learned, between two commits."""
        if not work.learner.samples or any(tail.integrated > tail.durable for tail in work.tails.values()):
            return 0
        return work.learner.set_down(partial(self._stored, name))

    def _stored(self, name: str) -> bytes:
        data = self._ledger.memory_now(name)
        if data is None:
            raise UnavailableError(f"model {name!r} was deleted meanwhile")
        return data

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(_EVERY_S)
            await self.tend()
