"""Where the tensors' numbers lie in an ONNX file: a walk over protobuf's wire format that reads nothing else.

A field is a varint key (number << 3 | wire type) and a varint, 8 bytes, 4 bytes, or a length and as many bytes. The
numbers are those of onnx.proto3, which never change.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

LEAST_BYTES = 64
"""Smaller tensors are left to what lies around them."""
MAX_DEPTH = 16
"""Of graphs in graphs; deeper ones are left to what lies around them."""

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
# TensorProto's data types by their size; strings have none.
_ITEM_SIZES = {1: 4, 2: 1, 3: 1, 4: 2, 5: 2, 6: 4, 7: 8, 9: 1, 10: 2, 11: 8, 12: 4, 13: 8, 14: 8, 15: 8, 16: 2}
_EXPONENT_BITS = {1: 8, 10: 5, 11: 11, 16: 8}
_FLOAT = 1
_RAW_DATA = 9
# Fields of TensorProto that hold packed numbers where raw_data is absent; varints are compared byte by byte.
_TYPED_DATA = {4: 4, 5: 1, 7: 1, 10: 8, 11: 1}
Field = tuple[int, int, int, int]
"""Number, value of a varint, and where its content begins and ends (0 for both where it is not bytes)."""


@dataclass(frozen=True, kw_only=True)
class TensorRange:
    """The numbers of one tensor."""

    key: tuple[object, ...]
    """Equal for the same tensor of two files: its name, or its node's, what it holds, and how many bytes."""
    begin: int
    end: int
    item: int
    """Bytes of a number."""
    exponent_bits: int
    """Of a number below its sign; 0 for integers."""
    columns: int
    """Of a float32 matrix; else 0."""


def tensor_ranges(file: bytes) -> list[TensorRange]:
    """In the file's order, without overlap. Of bytes that are no ONNX file: none."""
    try:
        found = [
            each
            for number, _, begin, end in _fields(file, 0, len(file))
            if number in (7, 25)
            for each in _of_graph(file, begin, end, depth=0, function=number == 25)
        ]
    except _NotProtobufError:
        return []
    return sorted(found, key=lambda each: each.begin)


class _NotProtobufError(Exception):
    pass


def _of_graph(file: bytes, begin: int, end: int, *, depth: int, function: bool = False) -> Iterator[TensorRange]:
    node_field, initializer_field = (7, 0) if function else (1, 5)
    if depth > MAX_DEPTH:
        return
    for number, _, start, stop in _fields(file, begin, end):
        if number == node_field and stop:
            yield from _of_node(file, start, stop, depth)
        elif number == initializer_field and stop:
            yield from _of_tensor(file, start, stop, b"")


def _of_node(file: bytes, begin: int, end: int, depth: int) -> Iterator[TensorRange]:
    fields = list(_fields(file, begin, end))
    # Outputs are unique in a graph, names of nodes need not be.
    name = next((file[start:stop] for number, _, start, stop in fields if number == 2), b"")
    for number, _, start, stop in fields:
        if number != 5:
            continue
        for inner, _, inner_start, inner_stop in _fields(file, start, stop):
            if inner in (5, 10) and inner_stop:
                yield from _of_tensor(file, inner_start, inner_stop, b"node " + name)
            elif inner in (6, 11) and inner_stop:
                yield from _of_graph(file, inner_start, inner_stop, depth=depth + 1)


def _of_tensor(file: bytes, begin: int, end: int, owner: bytes) -> Iterator[TensorRange]:
    name, kind, dims = b"", 0, []
    data: list[tuple[int, int, int]] = []
    for number, value, start, stop in _fields(file, begin, end):
        if number == 1:
            dims += list(_varints(file, start, stop)) if stop else [value]
        elif number == 2:
            kind = value
        elif number == 8:
            name = file[start:stop]
        elif (number == _RAW_DATA or number in _TYPED_DATA) and stop - start >= LEAST_BYTES:
            data.append((number, start, stop))
    # Several pieces of one tensor do not occur in files that anyone writes.
    if len(data) != 1:
        return
    number, start, stop = data[0]
    item = _ITEM_SIZES.get(kind, 1) if number == _RAW_DATA else _TYPED_DATA[number]
    if (stop - start) % item:
        return
    matrix = kind == _FLOAT and len(dims) == 2 and 4 * dims[0] * dims[1] == stop - start
    yield TensorRange(
        key=(owner, name, kind, number, stop - start),
        begin=start,
        end=stop,
        item=item,
        exponent_bits=_EXPONENT_BITS.get(kind, 0) if item > 1 else 0,
        columns=dims[1] if matrix else 0,
    )


def _fields(file: bytes, begin: int, end: int) -> Iterator[Field]:
    at = begin
    while at < end:
        key, at = _varint(file, at, end)
        number, wire = key >> 3, key & 7
        if wire == _VARINT:
            value, at = _varint(file, at, end)
            yield number, value, 0, 0
            continue
        if wire == _BYTES:
            length, at = _varint(file, at, end)
        elif wire in (_FIXED64, _FIXED32):
            length = 8 if wire == _FIXED64 else 4
        else:
            raise _NotProtobufError
        if number == 0 or length > end - at:
            raise _NotProtobufError
        if wire == _BYTES:
            yield number, 0, at, at + length
        at += length


def _varints(file: bytes, begin: int, end: int) -> Iterator[int]:
    at = begin
    while at < end:
        value, at = _varint(file, at, end)
        yield value


def _varint(file: bytes, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end and shift < 70:
        byte = file[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise _NotProtobufError
