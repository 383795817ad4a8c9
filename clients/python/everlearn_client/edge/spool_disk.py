"""A spool's folder: its state, its segments in order, its dead letters; what a crash left behind is put right here.

lock · state.0 · state.1 · segments/*.log · dead/*.letter
"""

from __future__ import annotations

import fcntl
from contextlib import suppress
from pathlib import Path
from typing import IO, Final

from everlearn_client.edge.clock import AgeClock, UptimeClock
from everlearn_client.edge.dead_letters import DeadLetter, DeadLetters
from everlearn_client.edge.durable_files import private
from everlearn_client.edge.segments import Segment
from everlearn_client.edge.spool_state import SpoolState, read_state
from everlearn_client.errors import InvalidArgument

_COUNTS_EVERY_S: Final = 10.0


class SpoolDisk:
    """What lies there, and the least that changes it. Its caller sees to it that one thread at a time is in here."""

    def __init__(
        self, folder: Path, *, stream: str, segment_bytes: int, dead_letter_bytes: int, clock: UptimeClock
    ) -> None:
        """Opens it. Raises InvalidArgument for a folder in use, or of another stream."""
        self._folder, self._segment_bytes = folder, segment_bytes
        self._records = folder / "segments"
        try:
            self._records.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = _locked(folder)
            self._active: Segment | None = None
            try:
                self.letters = DeadLetters(folder / "dead", max_bytes=dead_letter_bytes)
                self.segments = list(Segment.all_in(self._records))
                self.state, lost = self._take_up(stream)
                boot_id, at_s, age_s = self.state.clock
                self.clock = AgeClock(clock, boot_id=boot_id, at_s=at_s, age_s=age_s)
                self._read(lost=lost)
                self.write_state()
                self.sweep()
            except BaseException:
                self._lock.close()
                raise
        except OSError as error:
            raise InvalidArgument(f"{folder} cannot be a spool: {error.strerror}", field="folder") from error

    def close(self) -> None:
        """Lets go of it."""
        if self._lock.closed:
            return
        self.sync()
        self.write_state()
        self.seal()
        self._lock.close()

    # -- records -----------------------------------------------------------------------------------------------------

    @property
    def size_bytes(self) -> int:
        """Of all segments."""
        return sum(segment.size_bytes for segment in self.segments)

    @property
    def waiting(self) -> int:
        """Records that no sender has had."""
        return sum(number >= self.state.cursor for segment in self.segments for number in segment.entries)

    def first_waiting(self, count: int) -> list[int]:
        """Numbers of the oldest of them."""
        found: list[int] = []
        for segment in self.segments:
            found += [number for number in segment.entries if number >= self.state.cursor]
            if len(found) >= count:
                break
        return found[:count]

    def segment_of(self, number: int) -> Segment | None:
        """The segment that holds a record; None where it is gone."""
        return next((segment for segment in self.segments if number in segment.entries), None)

    def oldest_waiting(self) -> tuple[Segment, list[int]] | None:
        """The oldest segment with records that no sender has had, and their numbers."""
        for segment in self.segments:
            numbers = [number for number in segment.entries if number >= self.state.cursor]
            if numbers:
                return segment, numbers
        return None

    def active(self) -> Segment:
        """The segment that grows. Raises OSError."""
        if self._active is not None and (self._active.is_sealed or self._active.size_bytes >= self._segment_bytes):
            self.seal()
        if self._active is None:
            self._active = Segment.begin(self._records, first=self.state.next_number, boot=self.state.boot)
            self.segments.append(self._active)
        return self._active

    def seal(self) -> None:
        """The next record begins another segment."""
        if self._active is not None:
            self._active.seal()
            self._active = None

    def sync(self) -> None:
        """All records are on the disk. Raises OSError."""
        if self._active is not None:
            self._active.sync()

    def sweep(self) -> None:
        """Deletes the segments of which no record matters any more."""
        for segment in [each for each in self.segments if not each.entries]:
            if segment is self._active:
                self.seal()
            segment.delete()
            self.segments.remove(segment)

    # -- what must not be forgotten ----------------------------------------------------------------------------------

    def write_state(self) -> None:
        """Durable when it returns. Raises OSError."""
        self.state.clock = self.clock.told()
        self.state.write(self._folder)
        self._written_s = self.clock.seconds()

    def write_counts(self) -> None:
        """Counts alone have changed: written now and then, where the disk takes it, for there may be very many."""
        if self.clock.seconds() - self._written_s > _COUNTS_EVERY_S:
            with suppress(OSError):
                self.write_state()

    def put_letter(self, letter: DeadLetter) -> None:
        """Keeps it, where the disk takes it: what cannot be delivered may not stop what can."""
        try:
            dropped = self.letters.put(letter)
        except OSError:
            dropped = 1
        if dropped:
            self.state.count("LETTERS_DROPPED", dropped, 0)

    # -- inside ------------------------------------------------------------------------------------------------------

    def _take_up(self, stream: str) -> tuple[SpoolState, bool]:
        state, present = read_state(self._folder)
        lost = state is None and (present or bool(self.segments))
        state = state or SpoolState(stream=stream)
        if stream and state.stream and stream != state.stream:
            raise InvalidArgument(f"{self._folder} is the spool of {state.stream}, not of {stream}", field="folder")
        state.stream = state.stream or stream
        # Also by the segments: where the state was lost, they know.
        state.boot = max([state.boot, *(segment.boot for segment in self.segments)]) + 1
        return state, lost

    def _read(self, *, lost: bool) -> None:
        given = {number for _, number in self.state.assigned}
        for segment in self.segments:
            damages = segment.load()
            for index, (damage, data) in enumerate(damages):
                is_end = segment is self.segments[-1] and index == len(damages) - 1
                torn = is_end and damage.end == segment.size_bytes
                if torn:
                    self.state.count("TORN", 1, len(data))
                    _cut(segment, damage.offset)
                else:
                    self._set_aside(segment, damage.offset, data)
            last = max(segment.entries, default=segment.first - 1)
            self.state.next_number = max(self.state.next_number, last + 1)
            self.clock.not_before(max((each.put_s for each in segment.entries.values()), default=0.0))
            if lost:
                self._give_up(segment)
            gone = [number for number in segment.entries if number < self.state.cursor and number not in given]
            for number in gone:
                del segment.entries[number]

    def _set_aside(self, segment: Segment, offset: int, data: bytes) -> None:
        name = f"{segment.boot:08x}-{segment.first:012x}-{offset:08x}"
        if self.letters.holds(name):
            return  # an earlier opening has counted it
        told = f"{len(data)} bytes at {offset} of {segment.path.name} are no record any more"
        self.put_letter(DeadLetter(name=name, reason="ROT", message=told, payload=data))
        self.state.count("ROT", 1, len(data))

    def _give_up(self, segment: Segment) -> None:
        """Nobody knows which of these the server has had: sent again they might count twice."""
        for number, entry in segment.entries.items():
            told = "both copies of the spool's state were damaged, and it is not known whether this was sent"
            self.put_letter(
                DeadLetter(
                    name=f"{segment.boot:08x}-{number:012x}",
                    reason="STATE_LOST",
                    message=told,
                    samples=entry.samples,
                    payload=segment.payload(number) or b"",
                )
            )
            self.state.count("STATE_LOST", 1, entry.samples)
        segment.entries.clear()


def _locked(folder: Path) -> IO[bytes]:
    file = open(folder / "lock", "wb", opener=private)  # noqa: SIM115  # until close
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise InvalidArgument(f"{folder} is in use by another process", field="folder") from None
    return file


def _cut(segment: Segment, size_bytes: int) -> None:
    with segment.path.open("r+b") as file:
        file.truncate(size_bytes)
    segment.size_bytes = size_bytes
