"""Makes the delta from one file to another. Any two files do; of ONNX files it knows where the numbers are."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from everlearn_protos.delta._frames import compressed
from everlearn_protos.delta._items import Planes, Prediction, to_planes, uint
from everlearn_protos.delta._onnx_ranges import TensorRange, tensor_ranges
from everlearn_protos.delta._plan import ITEM_SIZES, MAX_COLUMNS, MAX_DICTIONARY, Kind, Plan, Segment
from everlearn_protos.delta._wire import MAX_PLAN, Envelope

MAX_LEVEL = 19
"""zstd's highest level whose frames any receiver opens in 8 MiB."""
SMALL = 2**19
"""Bytes: what changed less is compressed at level 19, in a fraction of a second; what changed more at LARGE_LEVEL."""
LARGE_LEVEL = 12
NOISE_BITS = 7.5
"""Of a byte's entropy: a plane above is noise, in which no level finds more than level 1 does."""
LEAST_COPY = 32
"""Bytes; a shorter range costs less as a literal than as a segment."""

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class _Piece:
    """A segment, and what it puts in the streams."""

    segment: Segment
    planes: Planes | None = None
    literal: bytes = b""


def encode(base: bytes, target: bytes, *, level: int | None = None) -> bytes:
    """The delta with which `everlearn_protos.delta.apply` makes `target` of `base`; equal arguments give equal bytes.

    `level`: of zstd, 1 to 19; None: 19 where little has changed, and less where that would take seconds.
    """
    if level is not None and not 1 <= level <= MAX_LEVEL:
        raise ValueError(f"level {level} is none of 1 to {MAX_LEVEL}")
    pieces, dictionary = _Comparison(base, target).pieces()
    plan, streams = _written(base, pieces, dictionary, level)
    packed = plan.packed()
    if len(packed) > MAX_PLAN:
        pieces = _literals(target, 0, len(target))
        plan, streams = _written(base, pieces, (), level)
        packed = plan.packed()
    return Envelope(
        base_sha256=hashlib.sha256(base).digest(),
        base_size=len(base),
        target_sha256=hashlib.sha256(target).digest(),
        target_size=len(target),
        plan=packed,
        streams=memoryview(streams),
    ).packed()


class _Comparison:
    """Two files, cut into tensors and the gaps between them."""

    def __init__(self, base: bytes, target: bytes) -> None:
        self._base, self._target = base, target
        self._base_array, self._target_array = np.frombuffer(base, np.uint8), np.frombuffer(target, np.uint8)
        self._base_tensors, self._target_tensors = tensor_ranges(base), tensor_ranges(target)

    def pieces(self) -> tuple[list[_Piece], tuple[tuple[int, int], ...]]:
        """Of the whole target, and the ranges of the base that the literals resemble."""
        gaps = _gaps(self._base_tensors, len(self._base))
        # The first of a name; two tensors of one name are no valid file.
        number_of = {tensor.key: number for number, tensor in reversed(list(enumerate(self._base_tensors)))}
        found: list[_Piece] = []
        resembled = set()
        for gap, tensor in zip(
            _gaps(self._target_tensors, len(self._target)), [*self._target_tensors, None], strict=True
        ):
            number = len(gaps) - 1 if tensor is None else number_of.get(tensor.key)
            base_gap = (0, 0) if number is None else gaps[number]
            pieces = self._gap(base_gap, gap)
            if any(piece.literal for piece in pieces):
                resembled.add(base_gap)
            found += pieces
            if tensor is not None:
                found.append(self._tensor(None if number is None else self._base_tensors[number], tensor))
        return _merged(found, self._target), _dictionary(resembled)

    def _tensor(self, old: TensorRange | None, new: TensorRange) -> _Piece:
        news = self._target_array[new.begin : new.end]
        fresh = Segment(kind=Kind.PLANES, length=len(news), item=new.item)
        candidates = [fresh]
        if old is not None:
            if np.array_equal(self._base_array[old.begin : old.end], news):
                return _Piece(segment=Segment(kind=Kind.COPY, length=len(news), base=old.begin))
            differs = replace(fresh, kind=Kind.DIFFERENCE, base=old.begin, order=new.exponent_bits)
            candidates.append(differs)
            if 2 <= new.columns <= MAX_COLUMNS and _sums_to_zero(news, new.columns):
                candidates.append(replace(differs, columns=new.columns))
        written = [(segment, self._planes(segment, news)) for segment in candidates]
        segment, planes = min(written, key=lambda each: _expected_bytes(each[1]))
        return _Piece(segment=segment, planes=planes)

    def _planes(self, segment: Segment, news: Bytes) -> Planes:
        olds = None
        if segment.kind is Kind.DIFFERENCE:
            olds = self._base_array[segment.base : segment.base + segment.length].copy().view(uint(segment.item))
        prediction = Prediction(olds, order=segment.order, columns=segment.columns)
        return to_planes(prediction.differences(news.copy().view(uint(segment.item))))

    def _gap(self, old: tuple[int, int], new: tuple[int, int]) -> list[_Piece]:
        """What both begin and end with is copied."""
        before, after = self._base_array[slice(*old)], self._target_array[slice(*new)]
        head = _common(before, after)
        tail = _common(before[head:][::-1], after[head:][::-1])
        copies = [(old[0], head), (old[1] - tail, tail)]
        first, last = (
            [_Piece(segment=Segment(kind=Kind.COPY, length=length, base=begin))] if length else []
            for begin, length in copies
        )
        return [*first, *_literals(self._target, new[0] + head, new[1] - tail), *last]


def _gaps(tensors: list[TensorRange], size: int) -> list[tuple[int, int]]:
    """(begin, end) of what lies before each tensor, and after the last."""
    return list(zip([0, *(each.end for each in tensors)], [*(each.begin for each in tensors), size], strict=True))


def _literals(target: bytes, begin: int, end: int) -> list[_Piece]:
    if begin == end:
        return []
    return [_Piece(segment=Segment(kind=Kind.LITERAL, length=end - begin), literal=target[begin:end])]


def _merged(pieces: list[_Piece], target: bytes) -> list[_Piece]:
    """Copies that lie beside each other as one; short ones as literals, and these, too, as one."""
    copied = list(_joined(pieces, Kind.COPY))
    at, kept = 0, []
    for piece in copied:
        length = piece.segment.length
        short = piece.segment.kind is Kind.COPY and length < LEAST_COPY
        kept += _literals(target, at, at + length) if short else [piece]
        at += length
    return list(_joined(kept, Kind.LITERAL))


def _joined(pieces: list[_Piece], kind: Kind) -> Iterator[_Piece]:
    waiting: _Piece | None = None
    for piece in pieces:
        if waiting is not None and _continues(waiting.segment, piece.segment, kind):
            segment = replace(waiting.segment, length=waiting.segment.length + piece.segment.length)
            waiting = replace(waiting, segment=segment, literal=waiting.literal + piece.literal)
            continue
        if waiting is not None:
            yield waiting
        waiting = piece
    if waiting is not None:
        yield waiting


def _continues(first: Segment, second: Segment, kind: Kind) -> bool:
    if not first.kind == second.kind == kind:
        return False
    return kind is Kind.LITERAL or first.base + first.length == second.base


def _dictionary(ranges: set[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """(begin, length), the last of what would be too much: zstd prefers what is near."""
    kept: list[tuple[int, int]] = []
    room = MAX_DICTIONARY
    for begin, end in sorted(ranges, reverse=True):
        length = min(end - begin, room)
        if length:
            kept.append((end - length, length))
            room -= length
    return tuple(reversed(kept))


def _written(
    base: bytes, pieces: list[_Piece], dictionary: tuple[tuple[int, int], ...], level: int | None
) -> tuple[Plan, bytes]:
    literals = b"".join(piece.literal for piece in pieces)
    changed = len(literals) + sum(piece.planes.size for piece in pieces if piece.planes is not None)
    if level is None:
        level = MAX_LEVEL if changed <= SMALL else LARGE_LEVEL
    frames = []
    if literals:
        resembled = b"".join(base[begin : begin + length] for begin, length in dictionary)
        frames.append(compressed(literals, level, resembled))
    for size in ITEM_SIZES:
        planes = [piece.planes for piece in pieces if piece.planes is not None and piece.segment.item == size]
        for byte in range(size if planes else 0):
            plane = np.concatenate([each[byte] for each in planes])
            frames.append(compressed(plane.tobytes(), 1 if _entropy_bits(plane) > NOISE_BITS else level))
    plan = Plan(
        segments=tuple(piece.segment for piece in pieces),
        dictionary=dictionary if literals else (),
        frame_lengths=tuple(len(frame) for frame in frames),
    )
    return plan, b"".join(frames)


def _common(first: Bytes, second: Bytes) -> int:
    """How many bytes both begin with."""
    size = min(len(first), len(second))
    differs = first[:size] != second[:size]
    return int(differs.argmax()) if differs.any() else size


def _sums_to_zero(news: Bytes, columns: int) -> bool:
    """Whether float32 rows do, but for rounding; so do the weights of a ridge regression on one-hot targets."""
    rows = news.copy().view("<f4").reshape(-1, columns).astype(np.float64)
    if not np.isfinite(rows).all():
        return False
    largest = float(np.abs(rows).max())
    return bool(np.abs(rows.sum(axis=1)).max() <= 1e-3 * largest)


def _expected_bytes(planes: Planes) -> float:
    return sum(len(plane) * _entropy_bits(plane) / 8 for plane in planes)


def _entropy_bits(plane: Bytes) -> float:
    """Of a byte, in [0, 8]."""
    counts = np.bincount(plane, minlength=256)
    shares = counts[counts > 0] / max(1, len(plane))
    return float(-(shares * np.log2(shares)).sum())
