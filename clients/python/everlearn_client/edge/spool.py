"""Labelled batches that wait on the device's disk for a connection: bounded, and whole after a power cut at any byte.

Two numberings. A record gets its own number when it is put in; (client, boot, number) never comes twice, whatever was
torn or rotted. The server's order (client, sequence) has no holes and knows nothing of what was dropped, so a record
gets its sequence when it is first given to the sender, durably before a byte of it is on the wire, and keeps it for
good. Until then it may be dropped; afterwards it goes only when the server's watermark covers it. Of a record that has
a sequence and has rotted meanwhile, an empty batch is sent in its place: without effect, but the sequence is spent.

Durability: `put` returns when the records are on the disk (fsync), so a power cut leaves a prefix of what was put. With
`sync_every=n` the flash is spared: of the last n records any may be lost then, and only of those.

Samples lie on the device's disk as they came, readable by their owner only, until they are durable or dropped.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from everlearn_client._inputs import BatchInput
from everlearn_client.edge.batch_codec import pack, unpack
from everlearn_client.edge.clock import UptimeClock, uptime
from everlearn_client.edge.dead_letters import DeadLetter
from everlearn_client.edge.frames import Entry, body_of
from everlearn_client.edge.segments import Segment, size_of
from everlearn_client.edge.spool_disk import SpoolDisk
from everlearn_client.errors import DataLoss, InvalidArgument, SpoolFull
from everlearn_client.samples import Batch

WhenFull = Literal["oldest", "newest", "refuse"]
ASSIGNED_AT_ONCE = 8
"""Records that get their sequence with one write of the state; so many at most can no longer be dropped beyond those
that are on the wire."""


@dataclass(frozen=True, kw_only=True)
class Dropped:
    """Records that are gone without having been learned."""

    reason: str
    """`FULL_OLDEST`, `FULL_NEWEST`, `DISK`, `AGE`; see SpoolStats.counts."""
    records: int
    samples: int


@dataclass(frozen=True, kw_only=True)
class SpoolStats:
    """What a spool holds and what became of the rest, since its folder was made."""

    waiting: int
    """Records that no sender has had."""
    assigned: int
    """Records that have their sequence and are not durable."""
    samples: int
    """In both."""
    bytes_on_disk: int
    dead_letters: int
    dead_letter_bytes: int
    counts: dict[str, tuple[int, int]]
    """Records and samples: `durable`, `FULL_OLDEST`, `FULL_NEWEST`, `DISK` (could not be written), `AGE`, `REJECTED`,
    `STATE_LOST`, `SHARED_ID` (numbers that somebody else used under this name), `UNDONE` (durable before the server was
    restored from a backup). Pieces and bytes: `ROT`, `TORN`. Letters: `LETTERS_DROPPED`."""


@dataclass(frozen=True, kw_only=True)
class Outgoing:
    """What is to be sent under a sequence."""

    sequence: int
    batch: Batch
    feature_digest: str
    size_bytes: int


class Spool:
    """One process at a time may have it open; threads share it.

    >>> with Spool("/var/lib/camera/spool", stream="models/digits clients/camera-7") as spool:  # doctest: +SKIP
    ...     spool.put(([jpeg], ["seven"]))
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        stream: str = "",
        max_bytes: int = 64 * 2**20,
        max_age_s: float | None = None,
        when_full: WhenFull = "oldest",
        dead_letter_bytes: int = 4 * 2**20,
        record_bytes: int = 256 * 2**10,
        record_samples: int = 64,
        sync_every: int = 1,
        on_drop: Callable[[Dropped], None] | None = None,
        clock: UptimeClock = uptime,
    ) -> None:
        """Opens or begins the folder; torn ends are cut, rot goes to the dead letters.

        `stream`: whose records these are; another one is refused. `max_bytes`: of records on the disk, dead letters
        not counted. `max_age_s`: by the device's own time while it is on (`clock.AgeClock`); None for ever.
        `when_full`: what gives way: the oldest that no sender has had, the newest, or `put` raises SpoolFull.
        `record_bytes`, `record_samples`: larger batches are cut near this.

        Raises InvalidArgument for a folder that another process has open, or that is another stream's.
        """
        if when_full not in ("oldest", "newest", "refuse"):
            raise InvalidArgument(f"when_full is {when_full!r}; it is oldest, newest or refuse", field="when_full")
        if sync_every < 1 or record_samples < 1 or record_bytes < 1:
            raise InvalidArgument("sync_every, record_samples and record_bytes are at least 1", field="sync_every")
        self._lock = threading.RLock()
        self._max_bytes, self._max_age_s, self._when_full = max_bytes, max_age_s, when_full
        self._record_bytes, self._record_samples = record_bytes, record_samples
        self._sync_every, self._unsynced = sync_every, 0
        self._on_drop = on_drop or (lambda dropped: None)
        segment_bytes = max(4096, max_bytes // 16)
        self._disk = SpoolDisk(
            Path(folder), stream=stream, segment_bytes=segment_bytes, dead_letter_bytes=dead_letter_bytes, clock=clock
        )
        self.arrived = threading.Condition(self._lock)
        """Told when a record was put in."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of the folder; all that was put in is on the disk."""
        with self._lock:
            self._disk.close()

    # -- putting in --------------------------------------------------------------------------------------------------

    def put(self, batch: BatchInput, *, feature_digest: str = "") -> list[tuple[int, int]]:
        """Keeps a batch until it is durable; returns (boot, number) of each record it became, of those that were kept.

        `feature_digest`: needed with `Features`. Raises InvalidArgument for a batch that cannot be sent, SpoolFull.
        """
        packed = pack(batch, target_bytes=self._record_bytes, max_samples=self._record_samples)
        with self._lock:
            self._expire()
            kept = [self._put(payload, samples, feature_digest) for payload, samples in packed]
            self.arrived.notify_all()
        return [each for each in kept if each is not None]

    def _put(self, payload: bytes, samples: int, feature_digest: str) -> tuple[int, int] | None:
        state = self._disk.state
        number, put_s = state.next_number, self._disk.clock.seconds()
        body = body_of(number, put_s, samples, feature_digest, payload)
        size = size_of(body)
        if size > self._max_bytes:
            raise InvalidArgument(f"a record takes {size:,} bytes; the spool has {self._max_bytes:,}", field="batch")
        if not self._make_room(size):
            self._refuse("FULL_NEWEST", samples, f"the spool holds {self._disk.size_bytes:,} bytes")
            return None
        try:
            segment = self._disk.active()
            entry = Entry(
                number=number,
                boot=state.boot,
                put_s=put_s,
                samples=samples,
                feature_digest=feature_digest,
                offset=segment.size_bytes,
                size_bytes=size,
            )
            self._unsynced = (self._unsynced + 1) % self._sync_every
            segment.append(entry, body, sync=self._unsynced == 0)
        except OSError as error:
            self._refuse("DISK", samples, f"the disk takes no more: {error.strerror}")
            return None
        state.next_number = number + 1
        return state.boot, number

    def _make_room(self, size: int) -> bool:
        while self._disk.size_bytes + size > self._max_bytes:
            oldest = self._disk.oldest_waiting() if self._when_full == "oldest" else None
            if oldest is None:
                return False
            # All of a segment at once: only whole files give bytes back.
            self._drop(*oldest, "FULL_OLDEST")
        return True

    def _refuse(self, reason: str, samples: int, why: str) -> None:
        if self._when_full == "refuse":
            raise SpoolFull(f"{why}; wait until more is durable, or make max_bytes larger", field="batch")
        self._disk.state.count(reason, 1, samples)
        self._disk.write_counts()
        self._on_drop(Dropped(reason=reason, records=1, samples=samples))

    def _expire(self) -> None:
        if self._max_age_s is None:
            return
        limit_s = self._disk.clock.seconds() - self._max_age_s
        for segment in list(self._disk.segments):
            old = [
                each.number
                for each in segment.entries.values()
                if each.put_s < limit_s and each.number >= self._disk.state.cursor
            ]
            if old:
                self._drop(segment, old, "AGE")

    def _drop(self, segment: Segment, numbers: list[int], reason: str) -> None:
        """Those were the oldest that nobody had been given."""
        samples = sum(segment.entries.pop(number).samples for number in numbers)
        state = self._disk.state
        state.cursor = max(state.cursor, numbers[-1] + 1)
        state.count(reason, len(numbers), samples)
        self._disk.write_state()
        self._disk.sweep()
        self._on_drop(Dropped(reason=reason, records=len(numbers), samples=samples))

    # -- giving out --------------------------------------------------------------------------------------------------

    @property
    def is_placed(self) -> bool:
        """Whether it is known where in the server's order the records go; see `place`."""
        return self._disk.state.next_sequence > 0

    @property
    def watermark(self) -> int:
        """Everything up to this sequence is durable."""
        return self._disk.state.watermark

    @property
    def timeline(self) -> str:
        """Of the server's acknowledgements; empty before the first."""
        return self._disk.state.timeline

    @property
    def pending(self) -> int:
        """Records that are not durable."""
        with self._lock:
            return len(self._disk.state.assigned) + self._disk.waiting

    def place(self, sequence: int) -> None:
        """The server, asked for the first time, waits for this sequence of the learner."""
        with self._lock:
            if not self.is_placed:
                self._disk.state.next_sequence, self._disk.state.watermark = sequence, sequence - 1
                self._disk.write_state()

    def give(self, sequence: int) -> Outgoing | None:
        """What is to be sent under this sequence, the same each time; None where nothing waits.

        The first time it is asked beyond what was given out, records get their sequences. Raises OSError where that
        cannot be made durable: nothing may be sent then.
        """
        with self._lock:
            state = self._disk.state
            if sequence >= state.next_sequence and not self._assign():
                return None
            number = dict(state.assigned).get(sequence)
            if number is None or self._disk.letters.holds(self._name(number)):
                return _empty(sequence)
            return self._outgoing(sequence, number)

    def _assign(self) -> bool:
        self._expire()
        state = self._disk.state
        found = self._disk.first_waiting(ASSIGNED_AT_ONCE)
        if not found or not self.is_placed:
            return False
        self._disk.sync()
        for number in found:
            state.assigned.append((state.next_sequence, number))
            state.next_sequence += 1
        state.cursor = found[-1] + 1
        self._disk.write_state()
        return True

    def _outgoing(self, sequence: int, number: int) -> Outgoing:
        segment = self._disk.segment_of(number)
        payload = segment.payload(number) if segment is not None else None
        if segment is None or payload is None:
            self._disk.state.count("ROT", 1, 0)
            return _empty(sequence)
        entry = segment.entries[number]
        try:
            batch = unpack(payload)
        except DataLoss as error:
            self._letter(number, "NOT_A_BATCH", str(error), "")
            return _empty(sequence)
        return Outgoing(
            sequence=sequence, batch=batch, feature_digest=entry.feature_digest, size_bytes=entry.size_bytes
        )

    # -- what the server said ----------------------------------------------------------------------------------------

    def reject(self, sequence: int, reason: str, message: str, field: str = "") -> None:
        """The server will never take this one: it becomes a dead letter now, and an empty batch in its place spends
        the sequence, should it be needed again."""
        with self._lock:
            number = dict(self._disk.state.assigned).get(sequence)
            if number is not None:
                self._letter(number, reason, message, field)

    def reject_features(self, feature_digest: str, message: str) -> None:
        """The model has another trunk now: those given out that carry features of this one are dead letters."""
        with self._lock:
            for _, number in self._disk.state.assigned:
                segment = self._disk.segment_of(number)
                if segment is not None and segment.entries[number].feature_digest == feature_digest:
                    self._letter(number, "FEATURE_DIGEST", message, "open.feature_digest")

    def durable(self, sequence: int, timeline: str = "") -> None:
        """Everything up to here is durable on the server: it is deleted here."""
        with self._lock:
            state = self._disk.state
            if timeline and timeline != state.timeline:
                state.timeline = timeline
            if not self.is_placed or sequence <= state.watermark:
                return
            shared = sequence >= state.next_sequence
            done = [number for given, number in state.assigned if given <= sequence]
            state.assigned = [each for each in state.assigned if each[0] > sequence]
            state.watermark = sequence
            state.next_sequence = max(state.next_sequence, sequence + 1)
            for number in done:
                self._forget(number, shared=shared)
            self._disk.write_state()
            self._disk.sweep()

    def rewind(self, sequence: int, timeline: str) -> None:
        """The server was restored from a backup, or the model made anew: only what is up to here is durable still.

        What was deleted here since is lost, and counted. What is here follows, under new sequences: the server knows
        nothing of the old ones any more.
        """
        with self._lock:
            state = self._disk.state
            state.timeline = timeline
            if not self.is_placed or sequence >= state.watermark:
                self.durable(sequence)
                return
            state.count("UNDONE", state.watermark - sequence, 0)
            state.watermark = sequence
            state.assigned = [(sequence + 1 + place, number) for place, (_, number) in enumerate(state.assigned)]
            state.next_sequence = sequence + 1 + len(state.assigned)
            self._disk.write_state()

    def stats(self) -> SpoolStats:
        """What there is, and what became of the rest."""
        with self._lock:
            disk = self._disk
            return SpoolStats(
                waiting=disk.waiting,
                assigned=len(disk.state.assigned),
                samples=sum(each.samples for segment in disk.segments for each in segment.entries.values()),
                bytes_on_disk=disk.size_bytes,
                dead_letters=len(disk.letters),
                dead_letter_bytes=disk.letters.size_bytes,
                counts={what: (each[0], each[1]) for what, each in disk.state.counts.items()},
            )

    def dead_letters(self) -> list[DeadLetter]:
        """What the server will never take, and what has rotted, oldest first."""
        with self._lock:
            return list(self._disk.letters)

    def _forget(self, number: int, *, shared: bool) -> None:
        segment = self._disk.segment_of(number)
        if segment is None:
            return  # counted as rot
        rejected = self._disk.letters.holds(self._name(number))
        what = "SHARED_ID" if shared else "REJECTED" if rejected else "durable"
        self._disk.state.count(what, 1, segment.entries.pop(number).samples)

    def _letter(self, number: int, reason: str, message: str, field: str) -> None:
        segment = self._disk.segment_of(number)
        payload = segment.payload(number) if segment is not None else None
        samples = segment.entries[number].samples if segment is not None else 0
        self._disk.put_letter(
            DeadLetter(
                name=self._name(number),
                reason=reason,
                message=message,
                field=field,
                samples=samples,
                payload=payload or b"",
            )
        )

    def _name(self, number: int) -> str:
        segment = self._disk.segment_of(number)
        return f"{segment.boot if segment is not None else 0:08x}-{number:012x}"


def _empty(sequence: int) -> Outgoing:
    return Outgoing(sequence=sequence, batch=Batch([], []), feature_digest="", size_bytes=0)
