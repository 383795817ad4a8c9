"""Bytes to messages of the Open Inference Protocol: sizes first, tensors without copying them."""

from __future__ import annotations

from typing import Any

from google.protobuf.message import DecodeError

from everlearn.errors import InputError, PayloadTooLargeError

MAX_FIELDS = 256
"""Top-level fields of one ModelInferRequest. A real one has about ten; tiny ones in millions would exhaust memory."""

_RAW_INPUT_CONTENTS = (7 << 3) | 2
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5


def parse(kind: Any, message: bytes, *, max_bytes: int) -> Any:
    """One message of class `kind`. Raises PayloadTooLargeError, InputError (not such a message)."""
    _check_size(kind, message, max_bytes)
    return _decode(kind, message)


def parse_infer(kind: Any, message: bytes, *, max_bytes: int) -> tuple[Any, list[memoryview]]:
    """A ModelInferRequest without its `raw_input_contents`, and those as views on `message`.

    Parsing all of it would copy the tensors twice: into the message, and out of it again.
    Raises PayloadTooLargeError, InputError (not such a message, or more than MAX_FIELDS fields).
    """
    _check_size(kind, message, max_bytes)
    view = memoryview(message)
    rest: list[memoryview] = []
    raw: list[memoryview] = []
    at = 0
    while at < len(message):
        if len(rest) + len(raw) == MAX_FIELDS:
            raise InputError(f"the ModelInferRequest has more than {MAX_FIELDS} top-level fields; send fewer")
        tag, begin, end = _field(message, at, kind)
        if tag == _RAW_INPUT_CONTENTS:
            raw.append(view[begin:end])
        else:
            rest.append(view[at:end])
        at = end
    return _decode(kind, b"".join(rest)), raw


def _check_size(kind: Any, message: bytes, max_bytes: int) -> None:
    if len(message) > max_bytes:
        raise PayloadTooLargeError(
            f"the {kind.DESCRIPTOR.name} has {len(message)} bytes; this server takes at most {max_bytes}"
        )


def _decode(kind: Any, message: bytes) -> Any:
    try:
        return kind.FromString(message)
    except DecodeError:
        raise _malformed(kind) from None  # protobuf's text says no more


def _malformed(kind: Any) -> InputError:
    return InputError(
        f"the message is not a valid {kind.DESCRIPTOR.full_name}; it must be binary protobuf, text in UTF-8"
    )


def _field(message: bytes, at: int, kind: Any) -> tuple[int, int, int]:
    """Tag, begin of the value and end of the field that begins at `at`. Raises InputError."""
    tag, at = _varint(message, at, kind)
    begin = at
    wire_type = tag & 7
    if wire_type == _LENGTH:
        size, begin = _varint(message, at, kind)
        end = begin + size
    elif wire_type == _VARINT:
        _, end = _varint(message, at, kind)
    elif wire_type in {_FIXED64, _FIXED32}:
        end = at + (8 if wire_type == _FIXED64 else 4)
    else:
        raise _malformed(kind)  # groups: proto3 has none
    if end > len(message):
        raise _malformed(kind)
    return tag, begin, end


def _varint(message: bytes, at: int, kind: Any) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            break
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise _malformed(kind)
