"""The single writer of a model: test, integrate, commit, acknowledge (reliability: derive - integrate - commit - ack).

Deduplication happens here, at the point where an effect enters the memory, and nowhere else: checking on receipt
counts batches twice when a client reconnects while its batches are staged.

An error that nobody foresaw leaves RAM ahead of or behind the ledger, so it ends the process (`on_fatal`); the restart
goes on from the last commit. It never leaves a writer that is dead while streams wait for it.

Group commits adapt to the size of the state: after a commit that took t seconds, the next one starts no sooner than
t * (1 / share - 1) later, so commits take at most `commit_share` of the time, whatever the memory weighs. Serialising
counts: it needs no disk, but the interpreter.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from typing import TypeVar

import numpy as np
import structlog

from everlearn.errors import EverlearnError, FencedError, SequenceGapError, UnavailableError
from everlearn.learners.base import Learned, Learner
from everlearn.memories.base import Origin
from everlearn.metrics.record import Record
from everlearn.spec.model import ModelSpec
from everlearn.sums import Sums
from everlearn.values import FeatureScale
from everlearn_server.engine.batches import (
    Counters,
    Derived,
    Outcome,
    Pending,
    StreamListener,
    Tail,
    fenced,
    outcome_of,
    settle,
)
from everlearn_server.engine.rest import Rest
from everlearn_server.engine.serving import Snapshot
from everlearn_server.store.ledger import Ledger
from everlearn_server.store.rows import Commit, RejectRow, StreamRow
from everlearn_server.store.store import exit_at_once

_logger = structlog.get_logger(__name__)
_GROUP = 32
"""Batches integrated in one hop to the worker thread."""
_HOP_S = 0.1
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
        commit_share: float = 0.1,
        on_fatal: Callable[[BaseException], None] = exit_at_once,
    ) -> None:
        self.learner = learner
        self.prequential = prequential
        self.saturated_values = 0
        """Feature values beyond the fixed-point scale since the start: many mean that the trunk meets what it was not
        probed with."""
        self._model = model
        self._uid = uid
        self._lineage = lineage
        self._timeline = timeline
        self._scale = scale
        self._ledger = ledger
        self._executor = executor
        self._live = live
        self._on_integrated = on_integrated
        self._on_durable = on_durable
        self._commit_share = commit_share
        self._on_fatal = on_fatal
        self._tails = {client: Tail.of(row) for client, row in streams.items()}
        self._listeners: dict[str, StreamListener] = {}
        self._inbox: deque[Pending] = deque()
        self._counters = Counters()
        self._changes = 0
        self._digest: tuple[int, str] | None = None
        self._memory_lock = asyncio.Lock()
        self._wake = asyncio.Event()
        self._may_commit_at_s = 0.0
        self._expire_at_s = 0.0
        self._disk_has_more = False
        """Features that were dropped from the memory are still in the last commit."""
        self._rest = Rest(self._settle)
        self._committing: asyncio.Task[None] | None = None
        self._closed = False
        self._failed = False
        self._hurry = asyncio.Event()
        self._task = asyncio.get_running_loop().create_task(self._run(), name=f"writer-{model}")
        self._task.add_done_callback(self._ended)

    # -- streams ------------------------------------------------------------------------------------------------

    async def open_stream(self, client: str, epoch: int, listener: StreamListener) -> Tail:
        """Begins a new epoch (0), fencing older connections of this client, or goes on with the present one.

        Either way an older connection is over. Raises FencedError for an older epoch, UnavailableError when closing.
        """
        async with self._memory_lock:
            if self._closed:
                raise self._closing()
            tail = self._tails.get(client)
            if epoch and (tail is None or epoch != tail.epoch):
                raise fenced(epoch, client, tail.epoch if tail else 0)
            if not epoch or tail is None:
                row = await self._ledger.open_stream(self._model, client)
                if tail is None:
                    tail = Tail.of(row)
                    self._tails[client] = tail
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
        return self._tails[client].durable if client in self._tails else 0

    # -- learning -----------------------------------------------------------------------------------------------

    def submit(self, batch: Derived) -> asyncio.Future[Outcome]:
        """Stages a batch, in order of arrival. The future raises FencedError, SequenceGapError, UnavailableError."""
        outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        if self._closed:
            settle(outcome, self._closing())
            return outcome
        self._inbox.append(Pending(batch=batch, outcome=outcome))
        self._wake.set()
        return outcome

    @property
    def idle(self) -> bool:
        """Nothing staged."""
        return not self._inbox

    async def learned(self) -> tuple[Learned, dict[str, int]]:
        """What has been learned by now, with the last integrated sequence of each client."""
        async with self._memory_lock:
            loop = asyncio.get_running_loop()
            learned = await loop.run_in_executor(self._executor, self.learner.learned)
            return learned, {client: tail.integrated for client, tail in self._tails.items()}

    async def copy_sums(self) -> tuple[Sums, FeatureScale]:
        """A copy of the sums and their scale. Raises PreconditionError (reason NO_SUMS) where the recipe keeps none."""
        return await self._under_lock(lambda: (self.learner.sums.copy(), self.learner.sums_scale))

    async def declare(self, labels: Sequence[str]) -> None:
        """Gives declared labels their indices, before any sample of theirs."""
        await self._under_lock(lambda: self.learner.declare(labels))

    async def configure(self, spec: ModelSpec) -> None:
        """Options that change in place. Raises what the learner raises; the old ones hold then."""
        await self._under_lock(lambda: self.learner.configure(spec))
        self._changes += 1
        if spec.memory.kind == "latents":  # what is no longer allowed goes from the disk at once
            self._commit_the_rest()
        self._wake.set()

    async def digest(self) -> str:
        """sha256 of what has been learned, computed again only where it has changed."""
        async with self._memory_lock:
            if self._digest is None or self._digest[0] != self._changes:
                loop = asyncio.get_running_loop()
                digest = await loop.run_in_executor(self._executor, lambda: self.learner.learned().digest())
                self._digest = (self._changes, digest)
            return self._digest[1]

    def is_durable(self, tails: Mapping[str, int]) -> bool:
        """Whether everything up to these sequences is committed."""
        return all(self.durable(client) >= sequence for client, sequence in tails.items())

    async def close(self, *, commit: bool = True) -> None:
        """Integrates and commits what is staged, then stops; without `commit` what is not durable is dropped."""
        self._closed = True
        self._rest.end()
        self._hurry.set()
        if not commit:
            while self._inbox:
                settle(self._inbox.popleft().outcome, self._closing())
        self._wake.set()
        # Never cancelled: a thread that was adding to the sums would go on without the lock.
        await asyncio.gather(self._task, return_exceptions=True)
        if self._committing is not None:
            # Before the last commit, or both would commit the same watermarks.
            await asyncio.gather(self._committing, return_exceptions=True)
        # What is held in RAM alone goes with it: it was never said to be durable, and clients send it again.
        while commit and self._dirty and not self._failed and not self.learner.holds_samples:
            await self._commit_after(0.0)
        for listener in self._listeners.values():
            listener.over(self._closing())
        self._listeners.clear()

    @property
    def disk_share(self) -> tuple[int, float]:
        """Commits so far and the seconds they kept the disk busy."""
        return self._counters.commits, self._counters.commit_s

    # -- the loop -----------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            ttl_s = self.learner.ttl_s
            if ttl_s is not None:
                await self._expire(every_s=min(max(ttl_s / 10, 1.0), _EXPIRE_S))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), ttl_s and self._expire_at_s - time.monotonic())
            self._wake.clear()
            while self._inbox:
                group = [self._inbox.popleft() for _ in range(min(_GROUP, len(self._inbox)))]
                async with self._memory_lock:
                    results = await loop.run_in_executor(self._executor, self._integrate_all, group)
                self._inbox.extendleft(reversed(group[len(results) :]))
                for pending, result in zip(group, results, strict=False):
                    settle(pending.outcome, result)
                # Duplicates alone change nothing: no new head for them.
                if any(isinstance(result, Outcome) and not result.duplicate for result in results):
                    self._on_integrated()
                    self._commit_when_due()
            if self._closed:
                return

    async def _expire(self, *, every_s: float) -> None:
        if time.monotonic() < self._expire_at_s or self._closed:
            return
        self._expire_at_s = time.monotonic() + every_s
        if await self._under_lock(lambda: self.learner.expire(time.time())):
            self._changes += 1
            self._on_integrated()
            self._commit_the_rest()

    async def _under_lock(self, call: Callable[[], T]) -> T:
        async with self._memory_lock:
            return await asyncio.get_running_loop().run_in_executor(self._executor, call)

    async def _settle(self) -> None:
        """The stream rests: what waits for more samples goes on with those that came."""
        await self._under_lock(self.learner.settle)
        self._changes += 1
        self._on_integrated()
        self._commit_when_due()

    def _ended(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._failed = True
            _logger.critical("writer failed", model=self._model, task=task.get_name(), exc_info=error)
            self._on_fatal(error)

    def _integrate_all(self, group: list[Pending]) -> list[Outcome | EverlearnError]:
        """Of the first ones, as many as a hop is worth: heads and commits are not to wait for slow batches."""
        end_s, results = time.monotonic() + _HOP_S, [self._integrate(group[0].batch)]
        while len(results) < len(group) and time.monotonic() < end_s:
            results.append(self._integrate(group[len(results)].batch))
        return results

    def _integrate(self, batch: Derived) -> Outcome | EverlearnError:
        tail = self._tails[batch.client]
        if batch.epoch != tail.epoch:
            return fenced(batch.epoch, batch.client, tail.epoch)
        if batch.sequence <= tail.integrated:
            return outcome_of(batch, self.prequential, self.learner.count_C, self._live(), duplicate=True)
        expected = tail.integrated + 1
        if batch.sequence > expected:
            return SequenceGapError(f"sequence {batch.sequence} leaves a gap; send {expected}", expected=expected)
        if batch.refusal is not None:
            reason, field = batch.refusal.reason, batch.refusal.field
            row = RejectRow(client=batch.client, sequence=batch.sequence, code=reason, field=field)
            self._counters.rejects.append(row)
            tail.integrated = batch.sequence
            return Outcome(sequence=batch.sequence, refusal=batch.refusal)
        return self._learn(batch, tail)

    def _learn(self, batch: Derived, tail: Tail) -> Outcome | EverlearnError:
        begun_s = time.perf_counter()
        live = self._live()
        scores_BC = live.scores(batch.features_Bd) if live is not None and batch.labels else None
        tested_s = time.perf_counter()
        try:
            quantised_Bd = self._scale.quantise(batch.features_Bd)
            self.learner.integrate(quantised_Bd, batch.labels, origin=Origin(client=batch.client, time_s=time.time()))
        except EverlearnError as error:  # a full memory: nothing was added, the sequence is not spent
            return error
        self.saturated_values += int(np.count_nonzero(np.abs(quantised_Bd) == self._scale.limit))
        before = self.prequential.correct
        known, features_Bd = live.head.labels if live else (), self._scale.restore(quantised_Bd)
        self.prequential.test(batch.labels, batch.client, scores_BC=scores_BC, known=known, features_Bd=features_Bd)
        correct = self.prequential.correct - before
        tail.integrated = batch.sequence
        self._changes += 1
        done_s = time.perf_counter()
        took_s = tested_s - begun_s, done_s - tested_s
        return outcome_of(
            batch, self.prequential, self.learner.count_C, live or self._live(), correct=correct, took_s=took_s
        )

    # -- commits ------------------------------------------------------------------------------------------------

    @property
    def _dirty(self) -> bool:
        return self._disk_has_more or any(tail.integrated > tail.durable for tail in self._tails.values())

    def _commit_the_rest(self) -> None:
        self._disk_has_more = self.learner.samples > 0
        self._commit_when_due()

    def _commit_when_due(self) -> None:
        if self.learner.holds_samples:
            self._rest.begin(self.learner.patience_s)
        elif (self._committing is None or self._committing.done()) and self._dirty:
            self._committing = asyncio.get_running_loop().create_task(self._commit_loop(), name=f"commit-{self._model}")
            self._committing.add_done_callback(self._ended)

    async def _commit_loop(self) -> None:
        while self._dirty and not self._closed and not self.learner.holds_samples:
            await self._commit_after(max(0.0, self._may_commit_at_s - time.monotonic()))

    async def _commit_after(self, delay_s: float) -> None:
        if delay_s:
            with contextlib.suppress(TimeoutError):  # closing does not wait
                await asyncio.wait_for(self._hurry.wait(), delay_s)
        loop = asyncio.get_running_loop()
        async with self._memory_lock:
            if self.learner.holds_samples:
                return
            begun_s = time.monotonic()
            data, prequential_json = await loop.run_in_executor(self._executor, self._serialise)
            serialise_s = time.monotonic() - begun_s
            moved = {
                client: StreamRow(epoch=tail.epoch, durable_sequence=tail.integrated)
                for client, tail in self._tails.items()
                if tail.integrated > tail.durable
            }
            rejects, self._counters.rejects = self._counters.rejects, []
            dropped, self._disk_has_more = self._disk_has_more, False
            commit = Commit(
                model=self._model,
                uid=self._uid,
                lineage=self._lineage,
                memory=data,
                sample_count=self.learner.samples,
                streams=moved,
                rejects=tuple(rejects),
                prequential_json=prequential_json,
                timeline=self._timeline,
            )
        if not moved and not dropped:
            return
        receipt = await self._ledger.commit(commit)
        self._counters.commits += 1
        self._counters.commit_s += receipt.duration_s
        taken_s = serialise_s + receipt.duration_s
        self._may_commit_at_s = time.monotonic() + taken_s * (1 / self._commit_share - 1)
        for client, row in moved.items():
            self._tails[client].durable = row.durable_sequence
            if client in self._listeners:
                self._listeners[client].durable_up_to(row.durable_sequence, receipt.commit_id)
        self._on_durable()

    def _serialise(self) -> tuple[bytes, str]:
        """Memory and prequential record; on a worker thread that holds the lock."""
        return self.learner.to_bytes(), json.dumps(self.prequential.to_dict())

    def _closing(self) -> UnavailableError:
        return UnavailableError(f"model {self._model!r} is being closed; reconnect")
