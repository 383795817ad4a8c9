"""A file from an earlier one: what a device downloads that already has a version of a model.

    head only, ten classes    some 36 KB instead of 13.5 MB
    the same file again       some 200 bytes

A delta names both files by their sha256 and says of every byte of the new one where it comes from: a range of the base,
a range of the base plus differences of its numbers, or the delta itself. `apply` knows nothing of ONNX, so a device
needs numpy and zstandard only; where the numbers lie is the business of who encodes (`delta.encoding`).

A delta is no more trusted than its sender: whoever can write one chooses both digests. It is for a signed manifest to
say which sha256 the result has to have.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

from everlearn_protos.delta._errors import DeltaError, WrongBaseError
from everlearn_protos.delta._frames import decompressed
from everlearn_protos.delta._items import Prediction, from_planes, uint
from everlearn_protos.delta._plan import ITEM_SIZES, Kind, Plan, Segment
from everlearn_protos.delta._wire import Envelope

__all__ = ["DeltaError", "WrongBaseError", "apply", "base_sha256"]

Bytes = npt.NDArray[np.uint8]


def apply(base: bytes, delta: bytes, *, max_bytes: int) -> bytes:
    """The new file, whose sha256 is the one that the delta names.

    `max_bytes`: refused where it would be larger; a signed manifest knows its size. Up to that much memory is taken,
    and as much again for differences, but none of it before everything the delta says of sizes and ranges has been
    checked.

    Raises WrongBaseError where the delta is for another base, DeltaError where it is damaged or not a delta.
    """
    envelope = Envelope.read(delta)
    if envelope.target_size > max_bytes:
        raise DeltaError(f"the result would have {envelope.target_size} bytes; at most {max_bytes} are allowed")
    if len(base) != envelope.base_size or hashlib.sha256(base).digest() != envelope.base_sha256:
        raise WrongBaseError(
            f"the delta is for the base with sha256 {envelope.base_sha256.hex()} and {envelope.base_size} bytes; "
            f"the one given has {len(base)} bytes and another sha256"
        )
    plan = Plan.unpack(envelope.plan, base_size=envelope.base_size, target_size=envelope.target_size)
    target = _assembled(np.frombuffer(base, np.uint8), plan, envelope.streams).tobytes()
    if hashlib.sha256(target).digest() != envelope.target_sha256:
        raise DeltaError("the result does not have the sha256 that the delta names; download the whole file")
    return target


def base_sha256(delta: bytes) -> str:
    """Of the file that the delta is for. Raises DeltaError where it is damaged or not a delta."""
    return Envelope.read(delta).base_sha256.hex()


def _assembled(base: Bytes, plan: Plan, streams: memoryview) -> Bytes:
    literals, planes_by_size = _streams(base, plan, streams)
    target = np.empty(plan.target_size, np.uint8)
    literal_at, target_at = 0, 0
    plane_at = dict.fromkeys(ITEM_SIZES, 0)
    for segment in plan.segments:
        place = target[target_at : target_at + segment.length]
        target_at += segment.length
        if segment.kind is Kind.COPY:
            place[:] = base[segment.base : segment.base + segment.length]
        elif segment.kind is Kind.LITERAL:
            place[:] = literals[literal_at : literal_at + segment.length]
            literal_at += segment.length
        else:
            begin, end = plane_at[segment.item], plane_at[segment.item] + segment.length // segment.item
            plane_at[segment.item] = end
            place[:] = _items(base, segment, planes_by_size[segment.item][:, begin:end])
    return target


def _items(base: Bytes, segment: Segment, planes: Bytes) -> Bytes:
    """Bytes of a segment of numbers, from the planes of their differences."""
    olds = None
    if segment.kind is Kind.DIFFERENCE:
        olds = base[segment.base : segment.base + segment.length].copy().view(uint(segment.item))
    return Prediction(olds, order=segment.order, columns=segment.columns).news(from_planes(planes)).view(np.uint8)


def _streams(base: Bytes, plan: Plan, streams: memoryview) -> tuple[Bytes, dict[int, Bytes]]:
    """What the literals are, and for each item size the planes [bytes of an item, items]."""
    frames, at = [], 0
    for length in plan.frame_lengths:
        frames.append(streams[at : at + length])
        at += length
    if at != len(streams):
        raise DeltaError(f"{len(streams)} bytes follow the plan, which speaks of {at}")
    dictionary = b"".join(base[begin : begin + length].tobytes() for begin, length in plan.dictionary)
    literal_size, items = plan.literal_bytes, plan.items
    literals = np.empty(0, np.uint8)
    if literal_size:
        literals = np.frombuffer(decompressed(frames.pop(0), literal_size, dictionary), np.uint8)
    planes_by_size = {}
    for size in ITEM_SIZES:
        if items[size]:
            planes_by_size[size] = np.empty((size, items[size]), np.uint8)
            for plane in planes_by_size[size]:
                plane[:] = np.frombuffer(decompressed(frames.pop(0), items[size]), np.uint8)
    return literals, planes_by_size
