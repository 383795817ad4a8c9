"""Empties a spool into the server: one stream at a time, each batch under the sequence that the spool gave it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Literal

from everlearn_client import events
from everlearn_client._learn import LearnSession
from everlearn_client._learn_sync import OpenStream, learn
from everlearn_client._retry import Retry
from everlearn_client.edge.policy import Allowance
from everlearn_client.edge.spool import Outgoing, Spool
from everlearn_client.errors import EverlearnClientError, InvalidArgument, SequenceGap, TimelineChanged
from everlearn_client.receipts import ReceiptFile
from everlearn_client.samples import Batch

WINDOW: Final = 8
"""Batches on the wire at a time: a device has little memory, and its link is slow."""
_REWINDS: Final = 3
"""In one emptying: a server that is restored more often in that time has another trouble."""


@dataclass(frozen=True, kw_only=True)
class Drained:
    """What one emptying did."""

    batches: int
    """Made durable."""
    stopped: Literal["empty", "allowance"]
    """Nothing is left, or what is left may not be sent yet."""
    next_bytes: int = 0
    """Size of the first that may not."""
    version: int = 0
    """That knows all of it, where the server has said so."""


class Drain:
    """One learner of one model, and its spool."""

    def __init__(
        self,
        spool: Spool,
        open_stream: OpenStream,
        *,
        model: str,
        client_id: str,
        allowance: Allowance,
        receipts: ReceiptFile | None = None,
        retry_for_s: float = 20.0,
        on_event: Callable[[events.LearnEvent], None] | None = None,
    ) -> None:
        """`retry_for_s`: seconds of failing in a row until `run` raises; whoever calls it waits and calls again."""
        self._spool, self._open_stream, self._allowance = spool, open_stream, allowance
        self._model, self._client_id, self._receipts = model, client_id, receipts
        self._retry_for_s = retry_for_s
        self._hear_too = on_event or (lambda event: None)
        # Half of the messages of a stream, each of which wakes a radio: nobody here asks what is not durable yet.
        self._durable_only = on_event is None and receipts is None
        self._opened = False
        self._last: Outgoing | None = None
        self._refused: Outgoing | None = None
        self._version = self._rewinds = 0

    def run(self) -> Drained:
        """Sends what waits until all of it is durable or no more may be sent.

        What the server will never take becomes a dead letter. Raises what passes, or a person has to see to:
        Unavailable, Overloaded, Held, Fenced, NotFound, AccessDenied, FailedPrecondition; nothing is lost by it.
        """
        before, self._rewinds = self._done(), 0
        if not self._spool.is_placed and self._spool.pending:
            self._place()
        while (first := self._spool.give(self._spool.watermark + 1)) is not None:
            if not self._stream(first):
                break
        left = self._refused
        return Drained(
            batches=self._done() - before,
            stopped="empty" if left is None else "allowance",
            next_bytes=0 if left is None else left.size_bytes,
            version=self._version,
        )

    def _place(self) -> None:
        """Asks the server once where this learner stands."""
        found: list[events.Opened] = []
        session = LearnSession(self._model, self._client_id)
        self._converse(session, iter(()), lambda event: found.append(event) if _is_opened(event) else None)  # type: ignore[arg-type]  # just checked
        self._spool.place(max(found[0].durable_sequence, found[0].held_sequence) + 1)

    def _stream(self, first: Outgoing) -> bool:
        """One stream. False where no more may be sent."""
        self._opened, self._last, self._refused = False, None, None
        session = LearnSession(
            self._model,
            self._client_id,
            window=WINDOW,
            first_sequence=first.sequence,
            feature_digest=first.feature_digest,
            timeline=self._spool.timeline,
            receipts=self._receipts,
            durable_only=self._durable_only,
        )
        try:
            self._converse(session, self._batches(first), self._hear)
        except TimelineChanged as error:
            self._rewind(error, error.durable_sequence, error.timeline)
        except SequenceGap as error:
            if not 0 < error.expected <= self._spool.watermark:
                raise
            self._rewind(error, error.expected - 1, self._spool.timeline)  # the model was made anew
        except InvalidArgument as error:
            if not self._bury(first, error):
                raise
        return self._refused is None

    def _converse(
        self, session: LearnSession, batches: Iterator[Batch], hear: Callable[[events.LearnEvent], None]
    ) -> None:
        learn(self._open_stream, session, batches, retry=Retry(give_up_after_s=self._retry_for_s), on_event=hear)

    def _batches(self, first: Outgoing) -> Iterator[Batch]:
        sequence = first.sequence
        while (outgoing := self._spool.give(sequence)) is not None:
            if outgoing.size_bytes and outgoing.feature_digest != first.feature_digest:
                return  # of another trunk, or none: a stream of its own
            if sequence > self._spool.watermark and not self._allowance.take(outgoing.size_bytes):
                self._refused = outgoing
                return
            self._last = outgoing
            yield outgoing.batch
            sequence += 1

    def _rewind(self, error: EverlearnClientError, sequence: int, timeline: str) -> None:
        self._rewinds += 1
        if self._rewinds > _REWINDS:
            raise error
        self._spool.rewind(sequence, timeline)

    def _bury(self, first: Outgoing, error: EverlearnClientError) -> bool:
        """A batch that can never be sent, by the server's word at the stream's opening, or by ours before it went."""
        if not self._opened and error.field == "open.feature_digest":
            self._spool.reject_features(first.feature_digest, error.message)
            return True
        if self._last is not None and self._last.size_bytes:
            self._spool.reject(self._last.sequence, "INVALID_ARGUMENT", error.message, error.field)
            return True
        return False

    def _hear(self, event: events.LearnEvent) -> None:
        match event:
            case events.Opened():
                self._opened = True
                self._spool.durable(event.durable_sequence, event.timeline)
            case events.Durable():
                self._version = max(self._version, event.version)
                self._spool.durable(event.sequence, event.timeline)
            case events.Rejected():
                self._spool.reject(event.sequence, event.reason or event.code, event.message, event.field)
        self._hear_too(event)

    def _done(self) -> int:
        return self._spool.stats().counts.get("durable", (0, 0))[0]


def _is_opened(event: events.LearnEvent) -> bool:
    return isinstance(event, events.Opened)
