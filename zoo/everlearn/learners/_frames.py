"""What passes between a trainer and its child: a length, a JSON header, and plain numbers behind it. No pickle.

8 bytes: length of the header | header: {"parts": [[name, bytes] ...], ...} | the parts, one after the other

Streams are to be unbuffered: a buffer would keep the end of the last samples until there are others.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import IO, Any

import numpy as np

from everlearn.truth import LabelSets, Truth, Values

_LENGTH = struct.Struct("<Q")
_MAX_HEADER = 2**26


@dataclass(frozen=True, kw_only=True)
class Frame:
    """One question or answer."""

    told: Mapping[str, Any]
    parts: Mapping[str, bytes] = field(default_factory=dict)


def write(stream: IO[bytes], frame: Frame) -> None:
    """Raises BrokenPipeError where nobody reads any more."""
    sizes = [[name, len(part)] for name, part in frame.parts.items()]
    header = json.dumps({"told": dict(frame.told), "parts": sizes}).encode()
    for part in (_LENGTH.pack(len(header)) + header, *frame.parts.values()):
        rest = memoryview(part)
        while rest:  # a pipe takes what it has room for
            rest = rest[stream.write(rest) or 0 :]
    stream.flush()


def read(stream: IO[bytes]) -> Frame:
    """Raises EOFError where the other side is gone, or has gone in the middle of it."""
    (length,) = _LENGTH.unpack(_exactly(stream, _LENGTH.size))
    if length > _MAX_HEADER:
        raise EOFError(f"a header of {length} bytes; something else was written into the stream")
    header = json.loads(_exactly(stream, length))
    return Frame(told=header["told"], parts={name: _exactly(stream, size) for name, size in header["parts"]})


def with_truth(frame: Frame, truth: Truth) -> Frame:
    """The frame, and what is true of its samples; `truth_of` reads it."""
    if isinstance(truth, Values):
        values_BK = np.ascontiguousarray(truth.values_BK, "<f8")
        told = {**frame.told, "values": list(values_BK.shape)}
        return Frame(told=told, parts={**frame.parts, "values": values_BK.tobytes()})
    if isinstance(truth, LabelSets):
        return Frame(told={**frame.told, "sets": truth.sets_B}, parts=frame.parts)
    return Frame(told={**frame.told, "labels": list(truth)}, parts=frame.parts)


def truth_of(frame: Frame) -> Truth:
    """What `with_truth` wrote."""
    if "values" in frame.told:
        return Values(np.frombuffer(frame.parts["values"], "<f8").reshape(frame.told["values"]))
    if "sets" in frame.told:
        return LabelSets(tuple(tuple(labels) for labels in frame.told["sets"]))
    labels: list[str] = frame.told["labels"]
    return labels


def _exactly(stream: IO[bytes], size: int) -> bytes:
    data, read = bytearray(size), 0
    with memoryview(data) as view:
        while read < size:  # a pipe gives what it has
            got = stream.readinto(view[read:])  # type: ignore[attr-defined]  # every binary stream has it, IO says nothing
            if not got:
                raise EOFError(f"the stream ended after {read} of {size} bytes")
            read += got
    return bytes(data)
