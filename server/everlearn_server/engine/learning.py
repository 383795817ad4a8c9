"""One learning stream: admits batches, derives features, hands them to the writer in order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from everlearn.errors import (
    EverlearnError,
    InputError,
    InvalidError,
    OverloadedError,
    PreconditionError,
    TimelineChangedError,
)
from everlearn.inputs.samples import Features, Samples, Waiting
from everlearn.learners.calibration import NOT_OF_INT8
from everlearn.truth import Truth
from everlearn.values import FeaturesBd
from everlearn_server.engine.batches import Derived, Outcome
from everlearn_server.engine.beside import Captured
from everlearn_server.engine.decode import Decoder
from everlearn_server.engine.hold import GRACE_S, held
from everlearn_server.engine.live_model import LiveModel
from everlearn_server.engine.outbox import DurableUpTo, Event, Outbox, Received
from everlearn_server.engine.truth_check import TruthCheck
from everlearn_server.engine.work_queue import WorkQueue
from everlearn_server.errors import without_frames

_NOTHING: FeaturesBd = np.empty((0, 0), np.float32)
CREDITS = 16
"""Batches of one stream that may be in flight: enough to keep the workers busy, little enough to bound memory. One is
in flight until its answer is handed to the connection, which takes the next only when the client has read on."""


@dataclass(frozen=True, kw_only=True)
class LearnBatch:
    """A parsed batch; `samples` is None where the message could not be understood, and `refusal` says why."""

    sequence: int
    labels: Truth
    samples: Samples | Waiting | None
    step: str = ""
    refusal: InvalidError | None = None
    fingerprint: bytes = b""
    """See Derived."""


@dataclass(frozen=True, kw_only=True)
class _Features:
    features_Bd: FeaturesBd | None
    refusal: EverlearnError | None
    decode_ms: float = 0.0
    queue_ms: float = 0.0
    trunk_ms: float = 0.0
    captured: Captured | None = None
    """Pixels for the model's student, where it has time."""


class LearnStream:
    """One connection of one learner. Derivation of several batches overlaps; integration keeps their order."""

    def __init__(
        self,
        model: LiveModel,
        queue: WorkQueue,
        *,
        client: str,
        feature_digest: str,
        receipts: bool = False,
        durable_only: bool = False,
        require_room: Callable[[], None] = lambda: None,
    ) -> None:
        """`durable_only`: nothing is told of a batch before it is durable, but that it was refused. `require_room`
        raises DiskFullError where nothing may be taken in."""
        self._model = model
        self._require_room = require_room
        self._writer = model.writer
        self._decoder = Decoder(model.ready_trunk, model.spec.spec.input, queue.images)
        self._truth = TruthCheck(model.spec.spec)
        self._queue = queue
        self._client = client
        self._wants_receipts = receipts
        self._durable_only = durable_only
        stays = self._writer.learner.inseparable_because or (NOT_OF_INT8 if model.spec.spec.int8_trunk else "")
        if receipts and stays:
            raise PreconditionError(
                f"receipts would be of no use: {stays}; leave them out",
                field="open.receipts",
                reason="NOT_SEPARABLE",
            )
        self._sends_features = bool(feature_digest)
        self._events = Outbox()
        self._deriving: asyncio.Queue[tuple[LearnBatch, _Features | asyncio.Task[_Features]] | None] = asyncio.Queue()
        self._in_line = self._in_turn = 0
        """Batches that wait for the trunk, or behind one that does; and batches that the writer has."""
        self._all_settled = asyncio.Event()
        self._in_flight = 0
        self._last_sequence = 0
        self._commit_id = 0
        self._moved = asyncio.Event()
        self.epoch = 0
        self.durable_sequence = 0
        self.held_sequence = 0
        """Last sequence that is in RAM and, where nothing may be committed yet, waits there."""
        expected = model.ready_trunk.feature_digest
        if feature_digest and model.ready_trunk.observes:
            raise PreconditionError(
                f"the trunk in 8 bits, whose features these should be, is not made yet: {self._writer.held.waits}; "
                "send images",
                field="open.feature_digest",
                reason="NOT_CALIBRATED",
            )
        if feature_digest and feature_digest != expected:
            raise InputError(
                f"features were computed by {feature_digest[:12]}..., this model's trunk is {expected[:12]}...; "
                "export the model again and use its trunk",
                field="open.feature_digest",
            )

    async def open(self, *, epoch: int, timeline: str, present_timeline: str) -> None:
        """Takes the stream over. Raises TimelineChangedError, FencedError, DiskFullError."""
        self._require_room()
        if timeline and timeline != present_timeline:
            durable = self._writer.durable(self._client)
            raise TimelineChangedError(
                f"the server was restored from a backup (timeline {present_timeline}, not {timeline}): batches of "
                f"{self._client} are durable up to {durable}, and later acknowledgements are void; resend from "
                f"{durable + 1} what you still have, and report the rest lost",
                field="open.timeline",
                timeline=present_timeline,
                durable=durable,
            )
        tail = await self._writer.open_stream(self._client, epoch, self)
        self.epoch, self.durable_sequence = tail.epoch, tail.durable
        self.held_sequence = tail.integrated if self._writer.held.hold is not None else 0
        self._last_sequence = tail.durable
        self._stager = asyncio.create_task(self._stage(), name=f"stage-{self._client}")

    def accept(self, batch: LearnBatch, message: bytes = b"") -> None:
        """Admits a batch; `message`: as it came. Raises OverloadedError for one beyond the credits, DiskFullError."""
        self._require_room()
        if self._in_flight >= CREDITS:
            raise OverloadedError(
                f"{self._in_flight} batches are in flight and {CREDITS} may; wait for credits", retry_after_s=0.1
            )
        self._in_flight += 1
        if (keys := self._writer.held.keys) is not None:
            batch = replace(batch, fingerprint=keys.fingerprint(message))
        derived = self._derived_at_once(batch)
        if derived is not None and not self._in_line:
            self._hand_over(batch, derived)
            return
        self._in_line += 1
        self._deriving.put_nowait((batch, derived or asyncio.create_task(self._derive(batch))))

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
                try:
                    raise event
                finally:
                    del event  # an error that is a variable where it was raised is a cycle
            if isinstance(event, Received):
                # Before it is written: the client may answer with the next batch before we hear that it was.
                self._in_flight -= 1
            yield event

    def fail(self, error: BaseException) -> None:
        """Ends the stream with an error."""
        self._events.put(without_frames(error) if isinstance(error, EverlearnError) else error)

    async def close(self) -> None:
        """Lets go; what is staged stays staged."""
        self._writer.close_stream(self._client, self)
        if self.epoch:
            self._stager.cancel()
            while not self._deriving.empty():
                item = self._deriving.get_nowait()
                if item is not None and isinstance(item[1], asyncio.Task):
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

    def _derived_at_once(self, batch: LearnBatch) -> _Features | None:
        """Of features, and of what is refused; None where the trunk has to run."""
        try:
            refusal = batch.refusal or self._truth.refusal(batch.labels, batch.samples, batch.step)
            if refusal is not None:
                return _Features(features_Bd=None, refusal=without_frames(refusal))
            if batch.samples is None:
                raise InputError("samples are missing", field="batch.samples")
            samples = batch.samples
            if isinstance(samples, Waiting):  # they wait until the batch has its turn
                return _Features(features_Bd=None, refusal=None)
            if isinstance(samples, Features) and not self._sends_features:
                raise InputError(
                    "features need open.feature_digest, so that they are known to come from this model's trunk",
                    field="open.feature_digest",
                )
            self._decoder.check(samples, field="batch.samples")
            if not isinstance(samples, Features):
                return None
            self._decoder.check_features(samples.features_Bd, samples, field="batch.samples")
            return _Features(features_Bd=samples.features_Bd, refusal=None)
        except InvalidError as error:
            return _Features(features_Bd=None, refusal=without_frames(error))

    async def _derive(self, batch: LearnBatch) -> _Features:
        samples = batch.samples
        assert samples is not None, "refused at once"
        assert not isinstance(samples, Features | Waiting), "derived at once"
        try:
            pixels_of = self._decoder.pixels_of(samples, field="batch.samples")
            beside = self._model.beside
            captured = beside.room(len(samples)) if beside is not None else None
            work = await self._queue.learn(
                self._decoder.session,
                pixels_of if captured is None else captured.keeping(pixels_of),
                len(samples),
                self._decoder.feature_dim,
            )
            self._decoder.check_features(work.features_Bd, samples, field="batch.samples")
        except InvalidError as error:
            return _Features(features_Bd=None, refusal=without_frames(error))
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
            while await self._stage_next():
                pass
            while self._in_turn:
                self._all_settled.clear()
                await self._all_settled.wait()
            await self._drain()
            self._events.put(None)
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self._events.put(error)

    async def _stage_next(self) -> bool:
        """Hands a batch to the writer, and lets go of it: nothing here keeps the last one while none follows."""
        item = await self._deriving.get()
        if item is None:
            return False
        batch, deriving = item
        derived = await deriving if isinstance(deriving, asyncio.Task) else deriving
        self._in_line -= 1
        self._hand_over(batch, derived)
        return True

    def _hand_over(self, batch: LearnBatch, derived: _Features) -> None:
        """To the writer, in the order of the stream."""
        self._in_turn += 1
        self._writer.submit(
            Derived(
                client=self._client,
                epoch=self.epoch,
                sequence=batch.sequence,
                features_Bd=derived.features_Bd if derived.features_Bd is not None else _NOTHING,
                labels=batch.labels,
                step=batch.step,
                refusal=derived.refusal,
                fingerprint=batch.fingerprint,
                wants_receipt=self._wants_receipts,
                sample_ids=batch.samples.ids if isinstance(batch.samples, Waiting) else None,
            ),
            partial(self._settled, batch, derived),
        )

    def _settled(self, batch: LearnBatch, derived: _Features, result: Outcome | EverlearnError) -> None:
        self._in_turn -= 1
        if not self._in_turn:
            self._all_settled.set()
        try:
            self._report(batch, derived, result)
        except Exception as error:  # ends this stream; the writer goes on
            self._events.put(error)

    def _report(self, batch: LearnBatch, derived: _Features, result: Outcome | EverlearnError) -> None:
        if isinstance(result, EverlearnError):
            self._events.put(result)
            return
        self._teach(result, batch, derived)
        self._last_sequence = max(self._last_sequence, result.sequence)
        if self._durable_only and result.refusal is None:
            self._in_flight -= 1
        else:
            times = derived.decode_ms, derived.queue_ms, derived.trunk_ms
            self._events.put(Received(outcome=result, decode_ms=times[0], queue_ms=times[1], trunk_ms=times[2]))
        if result.duplicate and self._writer.durable(self._client) >= result.sequence:
            self.durable_up_to(self._writer.durable(self._client), 0)

    def _teach(self, outcome: Outcome, batch: LearnBatch, derived: _Features) -> None:
        """What the model has learned is for what learns beside it too, where that has time for it."""
        beside = self._model.beside
        if beside is not None and derived.features_Bd is not None and not outcome.refusal and not outcome.duplicate:
            latest = self._model.book.latest
            snapshot = latest.snapshot if latest is not None else None
            beside.offer(derived.captured, derived.features_Bd, batch.labels, snapshot)
        elif derived.captured is not None:
            derived.captured.take()

    async def _drain(self) -> None:
        """Waits until all is durable and a head knows it, then says so. Raises PreconditionError (reason HELD) where
        it is not to be durable yet, for nobody has sent enough."""
        while (first := self._writer.durable(self._client) + 1) <= self._last_sequence:
            self._moved.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._moved.wait(), GRACE_S)
                continue
            if waits := self._writer.held.waits:
                raise held(waits, first=first, last=self._last_sequence)
        await self._model.publisher.settled({self._client: self._last_sequence}, timeout_s=5.0)
        self._events.put(
            DurableUpTo(
                sequence=self._writer.durable(self._client),
                commit_id=self._commit_id,
                version=self._model.book.latest.record.number if self._model.book.latest else 0,
            )
        )
