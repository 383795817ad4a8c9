"""The learner's side of the Learn stream as a state machine without IO: Client and AsyncClient drive the same one.

The client is the write-ahead log: a batch stays in `_pending` until a Durable covers it, and after a broken
connection everything above the server's watermark is sent again under the same sequence. The server counts a
sequence once, so each batch has its effect exactly once.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from itertools import takewhile

from everlearn_client import events
from everlearn_client._inputs import BatchInput, as_batch, cut
from everlearn_client.errors import (
    DataLoss,
    EverlearnClientError,
    FailedPrecondition,
    InvalidArgument,
    SequenceGap,
    TimelineChanged,
    Unavailable,
)
from everlearn_client.receipts import BatchReceipt, ReceiptFile
from everlearn_client.resource_names import learner_name, model_name, step_name
from everlearn_client.samples import Rows
from everlearn_client.targets import Targets
from everlearn_protos.v1 import learn_pb2

REPORTED_REJECTIONS = 100
"""A report names this many and counts the rest: a learner may stream for months."""


@dataclass
class _Pending:
    sequence: int
    request: learn_pb2.LearnRequest
    samples: int
    sent: bool = False
    duplicate: bool = False
    rejected: events.Rejected | None = None
    needs_no_receipt: bool = False
    receipt: BatchReceipt | None = None


class LearnSession:
    """What to send next, what an answer means, what is left after a disconnect.

    A driver, for each connection: `open_request`, then in a loop `add` while `wants_batch`, send `next_messages`,
    half-close when `take_half_close`, give every answer to `on_response`, and the end of the stream to `on_end`.
    """

    def __init__(
        self,
        model: str,
        client_id: str,
        *,
        window: int = 64,
        first_sequence: int | None = None,
        feature_digest: str = "",
        timeline: str = "",
        step: str = "",
        receipts: ReceiptFile | None = None,
        durable_only: bool = False,
    ) -> None:
        """`durable_only`: the server need not say of a batch that it was received."""
        if window < 1:
            raise InvalidArgument(f"window is {window}; it is the number of batches kept, at least 1", field="window")
        if first_sequence is not None and first_sequence < 1:
            raise InvalidArgument(f"first_sequence is {first_sequence}; sequences begin at 1", field="first_sequence")
        self.model, self.client_id = model_name(model), learner_name(client_id)
        self.window = window
        self._step = step_name(step)
        self._receipts, self._durable_only = receipts, durable_only
        self.durable_sequence = 0
        self.failure: Exception | None = None
        """What ended the caller's batches early; raised after everything before it is durable."""
        self._first, self._next = first_sequence, 0
        self._feature_digest, self._timeline, self._epoch = feature_digest, timeline, 0
        self._max_samples = 0
        self._min_samples = self._min_clients = 0
        """Of the model's tier: nothing is durable until so many samples of so many clients have come."""
        self._pending: deque[_Pending] = deque()
        self._parts: deque[tuple[Rows, Targets, str]] = deque()
        self._finished = False
        # Of the present connection:
        self._opened, self._half_closed = False, False
        self._credits, self._cursor = 0, 0
        self._in_flight: set[int] = set()
        # For the report:
        self._begun = False
        self._sent = [0, 0]
        self._durable = [0, 0]
        self._rejected = [0, 0]
        self._skipped = self._duplicates = self._connections = 0
        self._rejections: list[events.Rejected] = []
        self._last: events.Received | None = None
        self._commit_id = self._version = 0

    def keep_from(self, earlier: LearnSession) -> None:
        """Sends again, before all else, what an earlier session was told to keep; who numbers batches does that."""
        if self._first is None:
            self._pending = earlier._pending
            self.durable_sequence = earlier.durable_sequence
            for item in self._pending:
                item.sent = item.duplicate = False

    # -- what to send ------------------------------------------------------------------------------------------------

    def open_request(self) -> learn_pb2.LearnRequest:
        """First message of a connection; forgets what was in flight on the one before."""
        self._opened = self._half_closed = False
        self._cursor = 0
        self._in_flight.clear()
        return learn_pb2.LearnRequest(
            open=learn_pb2.Open(
                model=self.model,
                client=self.client_id,
                # Going on with our epoch, not a new one: were another process to take over this id, it must win.
                epoch=self._epoch,
                timeline=self._timeline,
                feature_digest=self._feature_digest,
                receipts=self._receipts is not None,
                durable_only=self._durable_only,
            )
        )

    @property
    def wants_batch(self) -> bool:
        """Whether the caller's next batch should be taken now: one is prepared ahead, never more."""
        unsent = self._cursor < len(self._pending)
        is_open = self._opened and not self._half_closed
        return is_open and not self._finished and not self._parts and not unsent and self._has_room

    def add(self, batch: BatchInput) -> None:
        """Takes the caller's next batch. A wrong one ends the stream like an error of the caller's own iterable."""
        if self._first is not None and self._next <= self.durable_sequence and self._has_receipt(self._next):
            self._next += 1
            self._skipped += 1
            return
        try:
            number = None if self._first is None else self._next
            self._parts.extend(cut(as_batch(batch), step=self._step, number=number, max_samples=self._max_samples))
        except EverlearnClientError as error:
            self.finish(error)

    def finish(self, failure: Exception | None = None) -> None:
        """The caller's batches are over; `failure` is what ended them early."""
        self._finished = True
        self.failure = self.failure or failure

    def next_messages(self) -> list[learn_pb2.LearnRequest]:
        """All that window and credits allow to be sent now, in order of sequence."""
        requests: list[learn_pb2.LearnRequest] = []
        if not self._opened or self._half_closed:
            return requests
        while len(self._in_flight) < self._credits:
            if self._cursor == len(self._pending) and not self._prepare():
                break
            item = self._pending[self._cursor]
            self._cursor += 1
            self._in_flight.add(item.sequence)
            if not item.sent:
                item.sent = True
                self._sent[0] += 1
                self._sent[1] += item.samples
            requests.append(item.request)
        return requests

    def take_half_close(self) -> bool:
        """True once, when nothing more will be sent on this connection: the server then drains and answers.

        That is so, too, where the window waits for samples of other learners: until they come, or the server says Held.
        """
        all_sent = self._finished and not self._parts and self._cursor == len(self._pending)
        if not self._opened or self._half_closed or not (all_sent or self._waits_for_others):
            return False
        self._half_closed = True
        return True

    @property
    def complete(self) -> bool:
        """Whether every batch of the caller is durable."""
        return self._begun and self._finished and not self._parts and not self._pending

    # -- what answers mean -------------------------------------------------------------------------------------------

    def on_response(self, response: learn_pb2.LearnResponse) -> events.LearnEvent | None:
        """Applies an answer; None for a kind this client does not know.

        Raises TimelineChanged, SequenceGap or DataLoss where going on would lose or double a batch.
        """
        match response.WhichOneof("response"):
            case "opened":
                return self._on_opened(response.opened)
            case "received":
                return self._on_received(response.received)
            case "rejected":
                return self._on_rejected(response.rejected)
            case "durable":
                return self._on_durable(response.durable)
        return None

    def on_end(self) -> Unavailable | None:
        """The server ended the stream with OK. Returns what that means where batches are still open."""
        if self.complete:
            return None
        return Unavailable(f"the server ended the stream with {len(self._pending)} batches not yet durable")

    def can_recover_from(self, error: EverlearnClientError) -> bool:
        """Whether a gap the server reports can be filled from what is kept."""
        return isinstance(error, SequenceGap) and any(item.sequence == error.expected for item in self._pending)

    def note_of(self, error: Exception) -> str:
        """What to tell with an error that ends the stream: how far it is durable."""
        if isinstance(error, TimelineChanged):
            void = self.durable_sequence - error.durable_sequence
            return (
                f"of learner {self.client_id}, {max(void, 0)} acknowledged batches are void: the restored server has "
                f"those up to {error.durable_sequence}; send the next ones again"
            )
        return f"batches up to sequence {self.durable_sequence} of learner {self.client_id} are durable"

    def report(self, seconds: float) -> events.LearnReport:
        """What became of everything so far."""
        return events.LearnReport(
            model=self.model,
            client_id=self.client_id,
            sent_batches=self._sent[0],
            sent_samples=self._sent[1],
            durable_batches=self._durable[0],
            durable_samples=self._durable[1],
            durable_sequence=self.durable_sequence,
            skipped_batches=self._skipped,
            duplicates=self._duplicates,
            rejected_batches=self._rejected[0],
            rejected_samples=self._rejected[1],
            rejected=tuple(self._rejections),
            reconnects=max(0, self._connections - 1),
            last=self._last,
            commit_id=self._commit_id,
            version=self._version,
            epoch=self._epoch,
            timeline=self._timeline,
            seconds=seconds,
        )

    # -- inside ------------------------------------------------------------------------------------------------------

    def _prepare(self) -> bool:
        """Turns the next part into a pending message, if there is one and the window has room."""
        if not self._parts or not self._has_room:
            return False
        rows, targets, step = self._parts.popleft()
        try:
            samples = rows.message()
        except OSError as error:
            self._parts.clear()
            self.finish(InvalidArgument(f"{error.filename} cannot be read: {error.strerror}", field="samples"))
            return False
        batch = learn_pb2.Batch(sequence=self._next, samples=samples, step=step)
        targets.put(batch)
        self._pending.append(_Pending(self._next, learn_pb2.LearnRequest(batch=batch), len(targets)))
        self._next += 1
        return True

    def _on_opened(self, opened: learn_pb2.Opened) -> events.Opened:
        self._check_timeline(opened.timeline, opened.durable_sequence)
        if opened.durable_sequence < self.durable_sequence:
            raise DataLoss(
                f"the server acknowledged batches up to {self.durable_sequence} as durable and now has "
                f"{opened.durable_sequence}, on the same timeline"
            )
        self._opened = True
        self._connections += 1
        self._epoch, self._credits = opened.epoch, max(1, opened.credits)
        self._max_samples = opened.input.max_batch_samples
        self._min_samples, self._min_clients = opened.min_samples, opened.min_clients
        if not self._begun:
            self._begin(opened.durable_sequence, opened.held_sequence)
        self._forget_up_to(opened.durable_sequence)
        return events.Opened(
            opened.epoch, opened.durable_sequence, opened.timeline, opened.credits, opened.held_sequence
        )

    @property
    def _has_room(self) -> bool:
        """Whether one more batch may be kept: the window, and whatever the server waits for."""
        kept = sum(item.samples for item in self._pending if item.rejected is None)
        return len(self._pending) < self.window or kept < self._min_samples

    @property
    def _waits_for_others(self) -> bool:
        return (
            self._min_clients > 1 and not self._has_room and self._cursor == len(self._pending) and not self._in_flight
        )

    def _begin(self, durable_sequence: int, held_sequence: int) -> None:
        if self._first is not None:
            self._next = self._first
        elif self._pending:
            self._next = self._pending[-1].sequence + 1
        else:  # what is new follows what the server holds, or it would be taken for that
            self._next = max(durable_sequence, held_sequence) + 1
            durable_sequence = self._next - 1
        first = self._pending[0].sequence if self._pending else self._next
        if first > max(durable_sequence, held_sequence) + 1:
            raise SequenceGap(
                f"the first batch is number {first}; the server waits for {durable_sequence + 1} of {self.client_id}",
                expected=durable_sequence + 1,
                field="first_sequence",
            )
        self._begun = True

    def _on_received(self, received: learn_pb2.Received) -> events.Received:
        self._answered(received.sequence, received.credits)
        item = self._find(received.sequence)
        if item is not None and received.duplicate and not item.duplicate:
            item.duplicate = True
            self._duplicates += 1
        if item is not None and received.receipt:
            whose = (self.model.removeprefix("models/"), self.client_id)
            item.receipt = BatchReceipt(*whose, item.sequence, item.samples, received.receipt, received.duplicate)
        elif item is not None and self._receipts is not None:
            if not received.duplicate:
                raise FailedPrecondition("the server gave no receipt; it is older than they are", reason="NO_RECEIPTS")
            item.needs_no_receipt = True  # the server does not know it as learned
        self._forget_up_to(self.durable_sequence)
        self._last = events.Received.of(received)
        return self._last

    def _on_rejected(self, rejected: learn_pb2.Rejected) -> events.Rejected:
        self._answered(rejected.sequence, rejected.credits)
        event = events.Rejected(rejected.sequence, rejected.code, rejected.field, rejected.message, rejected.reason)
        item = self._find(rejected.sequence)
        if item is not None:
            item.rejected = event
        return event

    def _on_durable(self, durable: learn_pb2.Durable) -> events.Durable:
        self._check_timeline(durable.timeline)
        self._commit_id = max(self._commit_id, durable.commit_id)
        self._version = max(self._version, durable.version)
        self._forget_up_to(durable.sequence)
        return events.Durable(durable.sequence, durable.commit_id, durable.timeline, durable.version)

    def _check_timeline(self, timeline: str, durable_sequence: int = 0) -> None:
        if self._timeline and timeline and timeline != self._timeline:
            raise TimelineChanged(
                f"the server's history is {timeline} now, not {self._timeline}: it was restored from a backup, and "
                f"batches acknowledged since may be lost",
                durable_sequence=durable_sequence,
                timeline=timeline,
            )
        self._timeline = timeline or self._timeline

    def _answered(self, sequence: int, granted: int) -> None:
        self._in_flight.discard(sequence)
        # Never below one: with nothing in flight there would be no answer left to raise it again.
        self._credits = max(1, granted)

    def _find(self, sequence: int) -> _Pending | None:
        offset = sequence - self._pending[0].sequence if self._pending else -1
        if 0 <= offset < len(self._pending) and self._pending[offset].sequence == sequence:
            return self._pending[offset]
        # Where batches that have their receipt were left out, sequences are not one after the other.
        return next((item for item in self._pending if item.sequence == sequence), None)

    def _has_receipt(self, sequence: int) -> bool:
        """Whether nothing is to be had of a batch that is durable: it need not be sent."""
        name = self.model.removeprefix("models/")
        return self._receipts is None or self._receipts.holds(name, self.client_id, sequence)

    def _is_done(self, item: _Pending) -> bool:
        """Durable, and with its receipt where one is wanted."""
        if item.sequence > self.durable_sequence:
            return False
        return self._receipts is None or bool(item.receipt or item.rejected) or item.needs_no_receipt

    def _forget_up_to(self, sequence: int) -> None:
        self.durable_sequence = max(self.durable_sequence, sequence)
        if self._receipts is None:
            self._in_flight = {s for s in self._in_flight if s > sequence}
        done = list(takewhile(self._is_done, self._pending))
        if self._receipts is not None:
            self._receipts.append([item.receipt for item in done if item.receipt])
        for item in done:
            self._pending.popleft()
            self._cursor = max(0, self._cursor - 1)
            counts = self._durable if item.rejected is None else self._rejected
            counts[0] += 1
            counts[1] += item.samples
            if item.rejected is not None and len(self._rejections) < REPORTED_REJECTIONS:
                self._rejections.append(item.rejected)


def unheard(event: events.LearnEvent) -> None:
    """For callers that do not listen."""
