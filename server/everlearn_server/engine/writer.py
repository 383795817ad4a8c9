"""The single writer of a model: integrate, commit, acknowledge (reliability: derive - integrate - commit - ack).

An error that nobody foresaw leaves RAM ahead of or behind the ledger, so it ends the process (`on_fatal`); the restart
goes on from the last commit. It never leaves a writer that is dead while streams wait for it.

Group commits adapt to the size of the state (see Pace). Serialising counts: it needs no disk, but the interpreter.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from functools import partial
from typing import TypeVar

import structlog

from everlearn.errors import FencedError, UnavailableError
from everlearn.learners.base import Learned, Learner
from everlearn.metrics.record import Record
from everlearn.spec.model import ModelSpec
from everlearn.sums import Sums
from everlearn.values import FeatureScale
from everlearn_server.engine.batches import Counters, Derived, Outcome, Pending, Settled, StreamListener, Tail, fenced
from everlearn_server.engine.budget import Budget
from everlearn_server.engine.committing import Owner, client_sums_of, in_turn, staged, written
from everlearn_server.engine.guards import Guard
from everlearn_server.engine.held_state import Holding
from everlearn_server.engine.hold import Boundary, Hold
from everlearn_server.engine.integration import Integration
from everlearn_server.engine.limits import ClientLimits
from everlearn_server.engine.pace import Pace
from everlearn_server.engine.rest import Rest
from everlearn_server.engine.serving import Snapshot
from everlearn_server.store.ledger import Ledger
from everlearn_server.store.rows import Commit, Erasing, Receipt, StreamRow
from everlearn_server.store.store import exit_at_once

_logger = structlog.get_logger(__name__)
_GROUP = 32
"""Batches integrated in one hop to the worker thread."""
T = TypeVar("T")
_EXPIRE_S = 60.0
"""Longest time that features of a resting stream stay beyond their end; a tenth of what they are kept for, if less."""


class ModelWriter:
    """Owns the learner. Methods are called on the event loop; one worker thread at a time touches the learner."""

    def __init__(
        self,
        *,
        model: str,
        uid: str,
        lineage: int,
        timeline: str,
        learner: Learner,
        scale: FeatureScale,
        prequential: Record,
        streams: Mapping[str, StreamRow],
        ledger: Ledger,
        executor: Executor,
        live: Callable[[], Snapshot | None],
        on_integrated: Callable[[], None],
        on_durable: Callable[[], None],
        guards: Sequence[Guard] = (),
        hold: Hold | None = None,
        budget: Budget | None = None,
        limits: ClientLimits | None = None,
        pace: Pace | None = None,
        on_fatal: Callable[[BaseException], None] = exit_at_once,
    ) -> None:
        self.budget = budget
        self.work = Integration(
            learner=learner,
            scale=scale,
            prequential=prequential,
            streams=streams,
            live=live,
            guards=guards if budget is None else (*guards, budget),
            limits=limits,
        )
        self.held = Holding(hold, self.work)
        self.commit_id = 0  # the last one of the model; who takes it up sets it
        self._model = model
        self._owner = Owner(model=model, uid=uid, lineage=lineage, timeline=timeline)
        self._ledger = ledger
        self._executor = executor
        self._on_integrated = on_integrated
        self._on_durable = on_durable
        self._pace = pace or Pace(0.1)
        self._on_fatal = on_fatal
        self._listeners: dict[str, StreamListener] = {}
        self._inbox: deque[Pending] = deque()
        self._counters = Counters()
        self._digest: tuple[object, str] | None = None
        self._memory_lock = asyncio.Lock()
        self._commit_lock = asyncio.Lock()  # before the other: two commits at once would commit the same watermarks
        self._wake = asyncio.Event()
        self._expire_at_s = 0.0
        self._disk_has_more = False
        """Features that were dropped from the memory are still in the last commit."""
        self._rest = Rest(self._settle)
        self._committing: asyncio.Task[None] | None = None
        self._closed = self._failed = False
        self._task = asyncio.get_running_loop().create_task(self._run(), name=f"writer-{model}")
        self._task.add_done_callback(self._ended)

    @property
    def learner(self) -> Learner:
        """What learns; touched by one worker thread at a time."""
        return self.work.learner

    @property
    def prequential(self) -> Record:
        """Of tests before learning."""
        return self.work.prequential

    # -- streams ------------------------------------------------------------------------------------------------

    async def open_stream(self, client: str, epoch: int, listener: StreamListener) -> Tail:
        """Begins a new epoch (0), fencing older connections of this client, or goes on with the present one.

        Either way an older connection is over. Raises FencedError for an older epoch, UnavailableError when closing.
        """
        async with self._memory_lock:
            if self._closed:
                raise self._closing()
            tail = self.work.tails.get(client)
            if epoch and (tail is None or epoch != tail.epoch):
                raise fenced(epoch, client, tail.epoch if tail else 0)
            if not epoch or tail is None:
                row = await self._ledger.open_stream(self._model, client)
                if tail is None:
                    tail = Tail.of(row)
                    self.work.tails[client] = tail
                tail.epoch = row.epoch
            older = self._listeners.get(client)
            self._listeners[client] = listener
            if older is not None:  # it would wait for ever: what becomes durable is told to the newer one
                older.over(FencedError(f"a newer connection of client {client!r} has taken over", field="open.client"))
            return Tail(epoch=tail.epoch, integrated=tail.integrated, durable=tail.durable)

    def close_stream(self, client: str, listener: StreamListener) -> None:
        """Stops telling this listener; a newer connection's listener stays."""
        if self._listeners.get(client) is listener:
            del self._listeners[client]

    def durable(self, client: str) -> int:
        """Last durable sequence of a client."""
        return self.work.tails[client].durable if client in self.work.tails else 0

    # -- learning -----------------------------------------------------------------------------------------------

    def submit(self, batch: Derived, settled: Settled) -> None:
        """Stages a batch, in order of arrival. What becomes of it may be FencedError, SequenceGapError,
        UnavailableError."""
        if self._closed:
            settled(self._closing())
        else:
            self._inbox.append(Pending(batch=batch, settled=settled))
            self._wake.set()

    @property
    def idle(self) -> bool:
        """Nothing staged."""
        return not self._inbox

    async def learned(self) -> tuple[Learned, dict[str, int]]:
        """What has been learned by now (where commits are held, by the last), and each client's last sequence in it."""
        async with self._memory_lock:
            return await asyncio.get_running_loop().run_in_executor(self._executor, self.held.learned)

    async def copy_sums(self) -> tuple[Sums, FeatureScale]:
        """A copy of the sums and their scale. Raises PreconditionError (reason NO_SUMS) where the recipe keeps none."""
        return await self._under_lock(lambda: (self.held.sums(), self.learner.sums_scale))

    async def declare(self, labels: Sequence[str]) -> None:
        """Gives declared labels their indices, before any sample of theirs."""
        await self._under_lock(lambda: self.learner.declare(labels))

    async def configure(self, spec: ModelSpec) -> None:
        """Options that change in place, limits too. Raises what the learner raises; the old ones hold then."""

        def configure() -> Boundary | None:
            self.learner.configure(spec)
            if self.budget is not None:
                self.budget.configure(spec.privacy)
            self.work.limit(spec)
            return self.held.changed(Hold.of(spec))

        self.held.show(await self._under_lock(configure))
        self.work.changes += 1
        if spec.memory.kind == "latents":  # what is no longer allowed goes from the disk at once
            self._commit_the_rest()
        self._commit_when_due()  # what was held may not be any more
        self._wake.set()

    async def look(self, call: Callable[[Integration], T]) -> T:
        """What `call` makes of what is learned, between two batches, on the thread that owns it."""
        return await self._under_lock(lambda: call(self.work))

    async def quarantine(self, client: str, *, quarantined: bool) -> None:
        """Whether anything of a client is learned from the next batch on; durable on return. Raises NotFoundError,
        UnavailableError."""
        async with self._memory_lock:
            if self._closed:
                raise self._closing()
            await self._ledger.quarantine(self._model, client, quarantined)
            self.work.tails[client].quarantined = quarantined

    async def between_commits(self, call: Callable[[Integration], T]) -> T:
        """As `look`, while no commit is under way."""
        async with self._commit_lock:
            return await self.look(call)

    async def erase(self, take_out: Callable[[Integration], Erasing]) -> Receipt:
        """Takes something out between two batches and commits what is left; `take_out` raises or has changed it."""
        return await asyncio.shield(asyncio.ensure_future(self._erase(take_out)))

    async def digest(self) -> str:
        """sha256 of what has been learned, computed again only where it has changed."""
        async with self._memory_lock:
            state = self.held.boundary or self.work.changes
            if self._digest is None or self._digest[0] != state:
                loop = asyncio.get_running_loop()
                digest = await loop.run_in_executor(self._executor, lambda: self.held.learned()[0].digest())
                self._digest = (state, digest)
            return self._digest[1]

    def is_durable(self, tails: Mapping[str, int]) -> bool:
        """Whether everything up to these sequences is committed."""
        return all(self.durable(client) >= sequence for client, sequence in tails.items())

    async def close(self, *, commit: bool = True) -> None:
        """Integrates and commits what is staged, then stops; without `commit` what is not durable is dropped."""
        self._closed = True
        self._rest.end()
        self._pace.hurry()
        if not commit:
            while self._inbox:
                self._inbox.popleft().settled(self._closing())
        self._wake.set()
        # Never cancelled: a thread that was adding to the sums would go on without the lock.
        await asyncio.gather(self._task, return_exceptions=True)
        if self._committing is not None:
            # Before the last commit, or both would commit the same watermarks.
            await asyncio.gather(self._committing, return_exceptions=True)
        # What is held in RAM alone goes with it: it was never said to be durable, and clients send it again.
        while commit and self._dirty and not self._failed and self._may_commit:
            await self._commit()
        for listener in self._listeners.values():
            listener.over(self._closing())
        self._listeners.clear()

    @property
    def disk_share(self) -> tuple[int, float]:
        """Commits so far and the seconds they kept disk or processor busy."""
        return self._counters.commits, self._counters.commit_s

    # -- the loop -----------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        while True:
            ttl_s = self.learner.ttl_s
            if ttl_s is not None:
                await self._expire(every_s=min(max(ttl_s / 10, 1.0), _EXPIRE_S))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), ttl_s and self._expire_at_s - time.monotonic())
            self._wake.clear()
            while self._inbox:
                await self._take_group()
            if self._closed:
                return

    async def _take_group(self) -> None:  # on its own: nothing keeps the last batch while none follows
        group = [self._inbox.popleft() for _ in range(min(_GROUP, len(self._inbox)))]
        results = await self._under_lock(lambda: self.work.take_some(group))
        self._inbox.extendleft(reversed(group[len(results) :]))
        for pending, result in zip(group, results, strict=False):
            pending.settled(result)
        if any(isinstance(result, Outcome) and not result.duplicate for result in results):  # duplicates change nothing
            if self.held.boundary is None:
                self._on_integrated()
            self._commit_when_due()

    async def _expire(self, *, every_s: float) -> None:
        if time.monotonic() < self._expire_at_s or self._closed:
            return
        self._expire_at_s = time.monotonic() + every_s
        if await self._under_lock(lambda: self.learner.expire(time.time())):
            self.work.changes += 1
            self._on_integrated()
            self._commit_the_rest()

    async def _under_lock(self, call: Callable[[], T]) -> T:
        async with self._memory_lock:
            return await asyncio.get_running_loop().run_in_executor(self._executor, call)

    async def _settle(self) -> None:
        """The stream rests: what waits for more samples goes on with those that came."""
        await self._under_lock(self.learner.settle)
        self.work.changes += 1
        self._on_integrated()
        self._commit_when_due()

    def _ended(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._failed = True
            _logger.critical("writer failed", model=self._model, task=task.get_name(), exc_info=error)
            self._on_fatal(error)

    # -- commits ------------------------------------------------------------------------------------------------

    @property
    def _dirty(self) -> bool:
        return self._disk_has_more or any(tail.integrated > tail.durable for tail in self.work.tails.values())

    @property
    def _may_commit(self) -> bool:
        return not self.learner.holds_samples and self.held.shortfall is None

    def _commit_the_rest(self) -> None:
        self._disk_has_more = self.learner.samples > 0
        self._commit_when_due()

    def _commit_when_due(self) -> None:
        if self.learner.holds_samples:
            self._rest.begin(self.learner.patience_s)
        elif (self._committing is None or self._committing.done()) and self._dirty and self._may_commit:
            self._committing = asyncio.get_running_loop().create_task(self._commit_loop(), name=f"commit-{self._model}")
            self._committing.add_done_callback(self._ended)

    async def _commit_loop(self) -> None:
        while self._dirty and not self._closed and self._may_commit:
            await self._pace.wait()
            await self._commit()

    async def _erase(self, take_out: Callable[[Integration], Erasing]) -> Receipt:
        loop = asyncio.get_running_loop()
        async with self._commit_lock, self._memory_lock:
            if self._closed:
                raise self._closing()
            erasing = await loop.run_in_executor(self._executor, take_out, self.work)
            try:
                data, prequential_json, boundary = await loop.run_in_executor(self._executor, self.held.serialised)
                commit = self._commit_of(data, prequential_json, erasing)
                receipt = await written(self._ledger, self._executor, commit, client_sums_of(self.work, commit))
            except BaseException as error:  # RAM is ahead of the disk
                self._failed = True
                self._on_fatal(error)
                raise
            self.work.changes += 1
            self._committed(commit, receipt, boundary)
        return receipt

    async def _commit(self) -> None:
        loop = asyncio.get_running_loop()
        async with self._commit_lock:
            async with self._memory_lock:
                if not self._may_commit:
                    return
                hold, serialise = self.held.hold, partial(self._pace.timed, self.held.serialised)
                serialised, serialise_s = await loop.run_in_executor(self._executor, serialise)
                data, prequential_json, boundary = serialised
                dropped = self._disk_has_more
                commit = self._commit_of(data, prequential_json)
                complete = client_sums_of(self.work, commit)
            if not commit.streams and not dropped:
                return
            receipt = await written(self._ledger, self._executor, commit, complete)
            self._pace.took(serialise_s + receipt.busy_s)
            self._committed(commit, receipt, boundary if self.held.hold is hold else None)

    def _commit_of(self, data: bytes, prequential_json: str, erasing: Erasing | None = None) -> Commit:
        self._disk_has_more = False
        return staged(self.work, self._owner, data, prequential_json, budget=self.budget, erasing=erasing)

    def _committed(self, commit: Commit, receipt: Receipt, boundary: Boundary | None) -> None:
        self._counters.commits += 1
        self._counters.commit_s += receipt.busy_s
        self.commit_id = receipt.commit_id
        for client, row in commit.streams.items():
            self.work.tails[client].took(row)
        if boundary is not None:
            self.held.show(boundary)
            self._on_integrated()
        for client, row in in_turn(commit, receipt.commit_id):
            if client in self._listeners:
                self._listeners[client].durable_up_to(row.durable_sequence, receipt.commit_id)
        self._on_durable()

    def _closing(self) -> UnavailableError:
        return UnavailableError(f"model {self._model!r} is being closed; reconnect")
