"""Bytes to messages of the Open Inference Protocol: sizes first, tensors without copying them."""

from __future__ import annotations

from typing import Any

from everlearn.errors import PayloadTooLargeError
from everlearn_server.rpc import prescan, wire

MAX_FIELDS = 256
"""Top-level fields of one ModelInferRequest; a real one has about ten."""

_RAW_INPUT_CONTENTS = (7 << 3) | 2


def parse_infer(kind: Any, message: bytes, *, max_bytes: int) -> tuple[Any, list[memoryview]]:
    """A ModelInferRequest without its `raw_input_contents`, and those as views on `message`.

    Parsing all of it would copy the tensors twice: into the message, and out of it again.
    Raises PayloadTooLargeError (too many bytes or fields), InvalidError (not such a message).
    """
    wire.look(kind, message, max_bytes=max_bytes)
    view = memoryview(message)
    rest: list[memoryview] = []
    raw: list[memoryview] = []
    for tag, place, begin, end in prescan.fields(message, 0, len(message)):
        if len(rest) + len(raw) == MAX_FIELDS:
            name = kind.DESCRIPTOR.full_name
            raise PayloadTooLargeError(
                f"the {name} has more than {MAX_FIELDS} top-level fields; send fewer", field=name
            )
        if tag == _RAW_INPUT_CONTENTS:
            raw.append(view[begin:end])
        else:
            rest.append(view[place:end])
    return wire.decode(kind, b"".join(rest), message), raw
