"""What a target is made of. The segments lie in it one behind the other; those of numbers and literals take what they
need from the streams in the same order.

Packed: how many segments, ranges of the dictionary and frames (u32 each), then each field of all of them in turn, which
compresses better than one segment after the other.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from everlearn_protos.delta._errors import DeltaError

ITEM_SIZES = (1, 2, 4, 8)
"""Bytes of a number."""
MAX_ORDER = 15
"""Bits of a number that can order it."""
MAX_COLUMNS = 2**16 - 1
MAX_DICTIONARY = 2**23
"""Bytes of the base that help to compress literals: what zstd reaches back at the levels used."""
_COUNTS = struct.Struct("<III")
_SEGMENT_FIELDS = (("kind", "u1"), ("item", "u1"), ("order", "u1"), ("columns", "<u2"), ("base", "<u8"))


class Kind(enum.IntEnum):
    """Where the bytes of a segment come from."""

    COPY = 0
    """A range of the base."""
    LITERAL = 1
    """The stream of literals."""
    DIFFERENCE = 2
    """A range of the base, and the differences of its numbers in planes."""
    PLANES = 3
    """Numbers in planes, without a base: differences to zero."""


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A range of the target."""

    kind: Kind
    length: int
    """Bytes."""
    base: int = 0
    """Where its range of the base begins; copies and differences only."""
    item: int = 1
    """Bytes of a number; differences and planes only, as all that follows."""
    order: int = 0
    """Planes are ordered by these many bits below the sign of the base's numbers; 0: as in the file. Differences."""
    columns: int = 0
    """Where it is not 0, the numbers are float32 rows of that many, and the last of each is near minus the sum of the
    others. Differences only."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All of a delta but the streams, of which it says how they are cut."""

    segments: tuple[Segment, ...]
    dictionary: tuple[tuple[int, int], ...]
    """(begin, length) of the ranges of the base that the literals were compressed with."""
    frame_lengths: tuple[int, ...]
    """Bytes: the literals' frame where there are any, then for each item size that occurs its planes, lowest first."""

    @property
    def target_size(self) -> int:
        """Bytes."""
        return sum(segment.length for segment in self.segments)

    @property
    def literal_bytes(self) -> int:
        """All segments' together."""
        return sum(segment.length for segment in self.segments if segment.kind is Kind.LITERAL)

    @property
    def items(self) -> dict[int, int]:
        """How many numbers of each size are in planes."""
        counts = dict.fromkeys(ITEM_SIZES, 0)
        for segment in self.segments:
            if segment.kind in (Kind.DIFFERENCE, Kind.PLANES):
                counts[segment.item] += segment.length // segment.item
        return counts

    def packed(self) -> bytes:
        """For `unpack`."""
        counts = _COUNTS.pack(len(self.segments), len(self.dictionary), len(self.frame_lengths))
        fields = [np.array([getattr(each, name) for each in self.segments], kind) for name, kind in _SEGMENT_FIELDS]
        lengths = np.array([each.length for each in self.segments], "<u8")
        dictionary = np.array(self.dictionary, "<u8")
        parts = (*fields, lengths, dictionary, np.array(self.frame_lengths, "<u8"))
        return counts + b"".join(part.tobytes() for part in parts)

    @classmethod
    def unpack(cls, data: bytes, *, base_size: int, target_size: int) -> Plan:
        """Raises DeltaError where it does not fit files of these sizes, or is none."""
        segments, ranges, frames = _COUNTS.unpack_from(data) if len(data) >= _COUNTS.size else (0, 0, 0)
        row = sum(np.dtype(kind).itemsize for _, kind in _SEGMENT_FIELDS) + 8
        if len(data) != _COUNTS.size + segments * row + ranges * 16 + frames * 8:
            raise DeltaError(f"a plan of {len(data)} bytes does not hold what it says it does")
        columns, at = {}, _COUNTS.size
        for name, kind in (*_SEGMENT_FIELDS, ("length", "<u8")):
            columns[name] = np.frombuffer(data, kind, segments, at)
            at += columns[name].nbytes
        dictionary = np.frombuffer(data, "<u8", 2 * ranges, at).reshape(-1, 2)
        lengths = np.frombuffer(data, "<u8", frames, at + dictionary.nbytes)
        _check(columns, dictionary, base_size, target_size)
        rows = zip(*(column.tolist() for column in columns.values()), strict=True)
        names = tuple(columns)
        plan = cls(
            segments=tuple(_segment(dict(zip(names, values, strict=True))) for values in rows),
            dictionary=tuple((begin, length) for begin, length in dictionary.tolist()),
            frame_lengths=tuple(lengths.tolist()),
        )
        expected = bool(plan.literal_bytes) + sum(size for size, count in plan.items.items() if count)
        if frames != expected:
            raise DeltaError(f"{frames} streams; the plan needs {expected}")
        return plan


def _segment(values: dict[str, int]) -> Segment:
    segment = Segment(kind=Kind(values.pop("kind")), **values)
    numbers, differs = segment.kind in (Kind.DIFFERENCE, Kind.PLANES), segment.kind is Kind.DIFFERENCE
    if (segment.base and segment.kind in (Kind.LITERAL, Kind.PLANES)) or (segment.item != 1 and not numbers):
        raise DeltaError(f"a {segment.kind.name.lower()} has fields that only other segments have")
    if (segment.order or segment.columns) and not differs:
        raise DeltaError(f"a {segment.kind.name.lower()} has fields that only differences have")
    if segment.order > min(MAX_ORDER, 8 * segment.item - 1):
        raise DeltaError(f"numbers of {segment.item} bytes cannot be ordered by {segment.order} of their bits")
    if segment.columns and (segment.item != 4 or segment.columns < 2 or segment.length % (4 * segment.columns)):
        raise DeltaError(f"{segment.length} bytes are no float32 rows of {segment.columns}")
    return segment


def _check(
    columns: dict[str, npt.NDArray[np.generic]], dictionary: npt.NDArray[np.uint64], base: int, target: int
) -> None:
    """All that can be said of segments at once. Python's integers, for sums of 64 bits may wrap."""
    kind, item = columns["kind"], columns["item"]
    if kind.size and int(kind.max()) > max(Kind):
        raise DeltaError(f"a segment of kind {int(kind.max())}; there is none above {max(Kind).value}")
    if not np.isin(item, ITEM_SIZES).all():
        raise DeltaError(f"a number has 1, 2, 4 or 8 bytes, not {sorted(set(item.tolist()) - set(ITEM_SIZES))}")
    begins, lengths = columns["base"].tolist(), columns["length"].tolist()
    if sum(lengths) != target:
        raise DeltaError(f"the segments have {sum(lengths)} bytes together, the result {target}")
    ends = [
        begin + length for begin, length, which in zip(begins, lengths, kind.tolist(), strict=True) if which in (0, 2)
    ]
    ends += [begin + length for begin, length in dictionary.tolist()]
    if max(ends, default=0) > base:
        raise DeltaError(f"a segment reaches to byte {max(ends)} of a base that has {base}")
    if any(length % size for length, size in zip(lengths, item.tolist(), strict=True)) or 0 in lengths:
        raise DeltaError("a segment is empty, or no whole number of its items")
    if sum(length for _, length in dictionary.tolist()) > MAX_DICTIONARY:
        raise DeltaError(f"the dictionary is larger than {MAX_DICTIONARY} bytes")
