"""One learning stream: admits batches, derives features, hands them to the writer in order."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass

import numpy as np

from everlearn.errors import EverlearnError, InputError, InvalidError, OverloadedError, TimelineChangedError
from everlearn.inputs.samples import Features, Samples
from everlearn.truth import Truth
from everlearn.values import FeaturesBd
from everlearn_server.engine.batches import Derived, Outcome
from everlearn_server.engine.decode import Decoder
from everlearn_server.engine.live_model import LiveModel
from everlearn_server.engine.students import Captured
from everlearn_server.engine.truth_check import TruthCheck
from everlearn_server.engine.work_queue import WorkQueue

_NOTHING: FeaturesBd = np.empty((0, 0), np.float32)
CREDITS = 16
"""Batches of one stream that may be in flight: enough to keep the workers busy, little enough to bound memory. One is
in flight until its answer is handed to the connection, which takes the next only when the client has read on."""


@dataclass(frozen=True, kw_only=True)
class LearnBatch:
    """A parsed batch; `samples` is None where the message could not be understood, and `refusal` says why."""

    sequence: int
    labels: Truth
    samples: Samples | None
    refusal: InvalidError | None = None


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


@dataclass(frozen=True, kw_only=True)
class _Features:
    features_Bd: FeaturesBd | None
    refusal: EverlearnError | None
    decode_ms: float = 0.0
    queue_ms: float = 0.0
    trunk_ms: float = 0.0
    captured: Captured | None = None
    """Pixels for the model's student, where it has time."""


class _Outbox:
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


class LearnStream:
    """One connection of one learner. Derivation of several batches overlaps; integration keeps their order."""

    def __init__(self, model: LiveModel, queue: WorkQueue, *, client: str, feature_digest: str) -> None:
        self._model = model
        self._writer = model.writer
        self._decoder = Decoder(model.ready_trunk, model.spec.spec.input)
        self._truth = TruthCheck(model.spec.spec)
        self._queue = queue
        self._client = client
        self._sends_features = bool(feature_digest)
        self._events = _Outbox()
        self._deriving: asyncio.Queue[tuple[LearnBatch, asyncio.Task[_Features]] | None] = asyncio.Queue()
        self._in_flight = 0
        self._last_sequence = 0
        self._commit_id = 0
        self._moved = asyncio.Event()
        self.epoch = 0
        self.durable_sequence = 0
        expected = model.ready_trunk.feature_digest
        if feature_digest and feature_digest != expected:
            raise InputError(
                f"features were computed by {feature_digest[:12]}..., this model's trunk is {expected[:12]}...; "
                "export the model again and use its trunk",
                field="open.feature_digest",
            )

    async def open(self, *, epoch: int, timeline: str, present_timeline: str) -> None:
        """Takes the stream over. Raises TimelineChangedError, FencedError."""
        if timeline and timeline != present_timeline:
            raise TimelineChangedError(
                f"acknowledgements of timeline {timeline} are void, {present_timeline} is present; resend what you "
                "still have or report it lost",
                field="open.timeline",
            )
        tail = await self._writer.open_stream(self._client, epoch, self)
        self.epoch, self.durable_sequence = tail.epoch, tail.durable
        self._last_sequence = tail.durable
        self._stager = asyncio.create_task(self._stage(), name=f"stage-{self._client}")

    def accept(self, batch: LearnBatch) -> None:
        """Admits a batch. Raises OverloadedError for one beyond the credits."""
        if self._in_flight >= CREDITS:
            raise OverloadedError(
                f"{self._in_flight} batches are in flight and {CREDITS} may; wait for credits", retry_after_s=0.1
            )
        self._in_flight += 1
        self._deriving.put_nowait((batch, asyncio.create_task(self._derive(batch))))

    def finish(self) -> None:
        """The client has half-closed: drain."""
        self._deriving.put_nowait(None)

    async def events(self) -> AsyncIterator[Event]:
        """What to tell the client, until everything is durable. Raises what ended the stream."""
        while True:
            event = await self._events.get()
            if event is None:
                return
            if isinstance(event, BaseException):
                raise event
            if isinstance(event, Received):
                # Before it is written: the client may answer with the next batch before we hear that it was.
                self._in_flight -= 1
            yield event

    def fail(self, error: BaseException) -> None:
        """Ends the stream with an error."""
        self._events.put(error)

    async def close(self) -> None:
        """Lets go; what is staged stays staged."""
        self._writer.close_stream(self._client, self)
        if self.epoch:
            self._stager.cancel()
            while not self._deriving.empty():
                item = self._deriving.get_nowait()
                if item is not None:
                    item[1].cancel()

    # -- as the writer's listener -----------------------------------------------------------------------------------

    def durable_up_to(self, sequence: int, commit_id: int) -> None:
        """Tells the client, and a drain that waits for it."""
        self._moved.set()
        self._commit_id = commit_id or self._commit_id
        latest = self._model.book.latest
        knows = latest is not None and latest.tails.get(self._client, 0) >= sequence
        self._events.put(
            DurableUpTo(
                sequence=sequence,
                commit_id=self._commit_id,
                version=latest.record.number if latest is not None and knows else 0,
            )
        )

    def over(self, error: EverlearnError) -> None:
        """Ends the stream with the writer's reason."""
        self.fail(error)

    # -- stages -------------------------------------------------------------------------------------------------

    async def _derive(self, batch: LearnBatch) -> _Features:
        try:
            refusal = batch.refusal or self._truth.refusal(batch.labels, batch.samples)
            if refusal is not None or batch.samples is None:
                raise refusal or InputError("samples are missing", field="batch.samples")
            samples = batch.samples
            if isinstance(samples, Features) and not self._sends_features:
                raise InputError(
                    "features need open.feature_digest, so that they are known to come from this model's trunk",
                    field="open.feature_digest",
                )
            self._decoder.check(samples, field="batch.samples")
            if isinstance(samples, Features):
                self._decoder.check_features(samples.features_Bd, samples, field="batch.samples")
                return _Features(features_Bd=samples.features_Bd, refusal=None)
            pixels_of = self._decoder.pixels_of(samples, field="batch.samples")
            student = self._model.student
            captured = student.room(len(samples)) if student is not None else None
            work = await self._queue.learn(
                self._decoder.session,
                pixels_of if captured is None else captured.keeping(pixels_of),
                len(samples),
                self._decoder.feature_dim,
            )
            self._decoder.check_features(work.features_Bd, samples, field="batch.samples")
        except InvalidError as error:
            return _Features(features_Bd=None, refusal=error)
        waited_s = max(0.0, work.started_s - work.enqueued_s) if len(samples) else 0.0
        return _Features(
            features_Bd=work.features_Bd,
            refusal=None,
            decode_ms=work.decode_s * 1e3,
            queue_ms=waited_s * 1e3,
            trunk_ms=work.trunk_s * 1e3,
            captured=captured,
        )

    async def _stage(self) -> None:
        try:
            pending: list[asyncio.Task[None]] = []
            while (item := await self._deriving.get()) is not None:
                batch, deriving = item
                derived = await deriving
                outcome = self._writer.submit(
                    Derived(
                        client=self._client,
                        epoch=self.epoch,
                        sequence=batch.sequence,
                        features_Bd=derived.features_Bd if derived.features_Bd is not None else _NOTHING,
                        labels=batch.labels,
                        refusal=derived.refusal,
                    )
                )
                pending = [task for task in pending if not task.done()]
                pending.append(asyncio.create_task(self._report(outcome, batch, derived)))
            await asyncio.gather(*pending)
            await self._drain()
            self._events.put(None)
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self._events.put(error)

    async def _report(self, future: asyncio.Future[Outcome], batch: LearnBatch, derived: _Features) -> None:
        try:
            outcome = await future
        except EverlearnError as error:
            self._events.put(error)
            return
        self._teach(outcome, batch, derived)
        self._last_sequence = max(self._last_sequence, outcome.sequence)
        self._events.put(
            Received(outcome=outcome, decode_ms=derived.decode_ms, queue_ms=derived.queue_ms, trunk_ms=derived.trunk_ms)
        )
        if outcome.duplicate and self._writer.durable(self._client) >= outcome.sequence:
            self.durable_up_to(self._writer.durable(self._client), 0)

    def _teach(self, outcome: Outcome, batch: LearnBatch, derived: _Features) -> None:
        """What the model has learned is for its student too, where it has time for it."""
        student = self._model.student
        if student is not None and derived.features_Bd is not None and not outcome.refusal and not outcome.duplicate:
            latest = self._model.book.latest
            snapshot = latest.snapshot if latest is not None else None
            student.offer(derived.captured, derived.features_Bd, batch.labels, snapshot)
        elif derived.captured is not None:
            derived.captured.take()

    async def _drain(self) -> None:
        """Waits until all is durable and a head knows it, then says so."""
        while self._writer.durable(self._client) < self._last_sequence:
            self._moved.clear()
            await self._moved.wait()
        await self._model.publisher.settled({self._client: self._last_sequence}, timeout_s=5.0)
        self._events.put(
            DurableUpTo(
                sequence=self._writer.durable(self._client),
                commit_id=self._commit_id,
                version=self._model.book.latest.record.number if self._model.book.latest else 0,
            )
        )
