"""Counts what a message holds before protobuf parses it: lengths are read off the wire, and no payload is copied.

Four megabytes can hold two million fields of two bytes each. Of those protobuf makes 96 MB of objects, and 465 MB more
once Python touches them. So a message is walked first, guided by its descriptor, and parsed only where all is within
the limits below. What a payload holds is skipped: the walk costs 0.2 us a field, whatever the size.

The wire format: https://protobuf.dev/programming-guides/encoding. A field is a varint tag (number << 3 | wire type) and
a value; strings, bytes, packed numbers and messages are a varint length and as many bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, cast

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from everlearn.errors import InvalidError, PayloadTooLargeError

MAX_FIELDS = 65_536
"""Of one request, with all that lies below it: labels of 1,024 samples, 63 each; Python makes an object of each."""
MAX_MESSAGES = 4_096
"""Embedded messages: a set of labels for each of 1,024 samples, and a few."""
MAX_DEPTH = 16
"""Messages inside each other; the contracts need 5."""
MAX_UNKNOWN = 256
"""Fields that this server does not know, of a client that is newer."""
MAX_AXES_BYTES = 2**16
"""Of a packed `shape`. A batch with a few axes too many is refused by itself, and its stream goes on."""
MAX_PACKED_BYTES = 4 * 2**20
"""Of packed floats: a million; more travel as bytes, where nobody has to make an object of each."""
MAX_PACKED_VARINTS_BYTES = 2**20
"""Of packed integers and booleans, which unpack to eight times as much."""

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_LEAF = -1
"""Rule of a string or of bytes; other rules are a wire type, a byte limit (packed), or a _Table (a message)."""
_TOO_LONG = "the value goes beyond the message that holds it"
_COUNTED = 4_096
"""Fields that are walked again to say which of many was wrong; behind them it is named without its number."""
_NO_VALUE = "a tag or number does not end, or the message ends before its value"


@dataclass(eq=False)
class _Table:
    """What a message's descriptor says, for walking it."""

    full_name: str
    rules: dict[int, Any] = field(default_factory=dict)
    """By whole tag, so that a known number with another wire type is an unknown field, as it is for protobuf."""
    names: dict[int, tuple[str, bool]] = field(default_factory=dict)
    """Field number -> name, and whether it is repeated."""
    texts: set[int] = field(default_factory=set)
    """Tags whose bytes must be UTF-8."""


_tables: dict[Descriptor, _Table] = {}
Stack = list[tuple[int, int, int, _Table]]
"""Of each open message: where it begins and ends, where its open field lies, and what it is."""


class _Fault(Exception):  # noqa: N818  # becomes an error of everlearn's once it is known where it is
    """What is wrong at the field that the walk is at."""

    def __init__(self, what: str, *, is_too_much: bool = False) -> None:
        super().__init__(what)
        self.is_too_much = is_too_much


def check(data: bytes, kind: Any) -> None:
    """Walks what is said to be a message of class `kind`.

    Raises PayloadTooLargeError for more than the limits, InvalidError for what is no message, each with the path of the
    field where it is so: `batch.samples.features.shape`.
    """
    stack: Stack = []
    begin = at = place = messages = unknown = 0
    end, table = len(data), _table(kind.DESCRIPTOR)
    try:
        for _ in range(MAX_FIELDS + 1):
            while at >= end:
                if at > end:
                    raise _Fault(_TOO_LONG)
                if not stack:
                    return
                begin, end, place, table = stack.pop()
            place = at
            tag = data[at]
            at += 1
            if tag > 127:
                tag, at = varint(data, place)
            rule = table.rules.get(tag)
            if rule is None:
                unknown += 1
                rule = _unknown(tag, unknown)
            if rule == _LEAF:
                size = data[at]
                at += 1
                if size > 127:
                    size, at = varint(data, at - 1)
                at += size
            elif rule == _VARINT:
                at = at + 1 if data[at] < 128 else varint(data, at)[1]
            elif rule == _FIXED64:
                at += 8
            elif rule == _FIXED32:
                at += 4
            elif rule.__class__ is int:
                size, at = varint(data, at)
                at += size
                if size > rule:
                    raise _Fault(f"{size} bytes of numbers, and {rule} are the most", is_too_much=True)
            else:
                size, at = varint(data, at)
                messages += 1
                _check_message(messages, len(stack), left=end - at - size)
                stack.append((begin, end, place, table))
                begin, end, table = at, at + size, cast(_Table, rule)
        raise _Fault(f"more than {MAX_FIELDS} fields in one request", is_too_much=True)
    except (IndexError, ValueError, _Fault) as error:
        raise _refusal(error, data, [*stack, (begin, end, place, table)]) from None


def _unknown(tag: int, count: int) -> int:
    """The rule of a field that the descriptor does not have."""
    if count > MAX_UNKNOWN:
        raise _Fault(f"more than {MAX_UNKNOWN} fields that are not known here", is_too_much=True)
    wire_type = tag & 7
    if not 8 <= tag < 2**32 or wire_type not in (_VARINT, _FIXED64, _LENGTH, _FIXED32):
        raise _Fault("a group, which proto3 does not have" if wire_type in (3, 4) else "a field of no known kind")
    return _LEAF if wire_type == _LENGTH else wire_type


def _check_message(count: int, depth: int, *, left: int) -> None:
    if count > MAX_MESSAGES:
        raise _Fault(f"more than {MAX_MESSAGES} messages inside one request", is_too_much=True)
    if depth + 1 >= MAX_DEPTH:
        raise _Fault(f"messages more than {MAX_DEPTH} deep", is_too_much=True)
    if left < 0:
        raise _Fault(_TOO_LONG)


def varint(data: bytes, at: int) -> tuple[int, int]:
    """The number at `at`, and where it ends. Raises IndexError where the bytes end, ValueError after ten bytes."""
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError


def fields(data: bytes, begin: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Of a stretch that `check` has passed: tag, begin of the field, begin of its value, end."""
    at = begin
    while at < end:
        place = at
        tag, at = varint(data, at)
        if tag & 7 == _LENGTH:
            size, at = varint(data, at)
            yield tag, place, at, at + size
            at += size
        else:
            stop = {_FIXED64: at + 8, _FIXED32: at + 4}.get(tag & 7) or varint(data, at)[1]
            yield tag, place, at, stop
            at = stop


def path_of_bad_text(data: bytes, kind: Any) -> str:
    """Where a string is not UTF-8, of a message that `check` has passed and protobuf has not; its type's name if
    nowhere."""
    root = _table(kind.DESCRIPTOR)
    waiting = [(root, 0, len(data), "")]
    left = _COUNTED
    while waiting:
        table, begin, end, path = waiting.pop()
        seen: dict[int, int] = {}
        for tag, _, value, stop in islice(fields(data, begin, end), left):
            left -= 1
            number = tag >> 3
            seen[number] = seen.get(number, -1) + 1
            below = table.rules.get(tag)
            if tag not in table.texts and not isinstance(below, _Table):
                continue
            name = _join(path, table, number, seen[number])
            if isinstance(below, _Table):
                waiting.append((below, value, stop, name))
                continue
            try:
                data[value:stop].decode()
            except UnicodeDecodeError:
                return name
    return root.full_name


def _table(descriptor: Descriptor) -> _Table:
    table = _tables.get(descriptor)
    if table is None:
        table = _tables[descriptor] = _Table(descriptor.full_name)  # before its fields: a message may hold itself
        for part in descriptor.fields:
            _add(table, part)
    return table


def _add(table: _Table, part: FieldDescriptor) -> None:
    number = part.number
    table.names[number] = (part.name, part.is_repeated)
    length = number << 3 | _LENGTH
    if part.message_type is not None:
        table.rules[length] = _table(part.message_type)
    elif part.type in (part.TYPE_STRING, part.TYPE_BYTES):
        table.rules[length] = _LEAF
        if part.type == part.TYPE_STRING:
            table.texts.add(length)
    else:
        wire_type = _wire_type(part)
        table.rules[number << 3 | wire_type] = wire_type
        if part.is_repeated:
            most = MAX_PACKED_VARINTS_BYTES if wire_type == _VARINT else MAX_PACKED_BYTES
            table.rules[length] = MAX_AXES_BYTES if part.name == "shape" else most


def _wire_type(part: FieldDescriptor) -> int:
    if part.type in (part.TYPE_DOUBLE, part.TYPE_FIXED64, part.TYPE_SFIXED64):
        return _FIXED64
    return _FIXED32 if part.type in (part.TYPE_FLOAT, part.TYPE_FIXED32, part.TYPE_SFIXED32) else _VARINT


def _refusal(error: Exception, data: bytes, stack: Stack) -> InvalidError:
    """The error to raise. Only here is counted how often each repeated field came before."""
    kind = stack[0][3].full_name
    path = ""
    for begin, _, at, table in stack:
        path = _step(data, path, table, begin, at)
    if not isinstance(error, _Fault) or not error.is_too_much:
        what = str(error) if isinstance(error, _Fault) else _NO_VALUE
        text = f"not a valid {kind}: {what}; it must be binary protobuf of the server's .proto"
        return InvalidError(text, field=path or kind)
    if path.endswith("]"):  # it is not the one that is too much, but all of them
        path = path[: path.rindex("[")]
    return PayloadTooLargeError(f"the {kind} has {error}; send less in one message", field=path or kind)


def _step(data: bytes, path: str, table: _Table, begin: int, at: int) -> str:
    try:
        number = varint(data, at)[0] >> 3
    except (IndexError, ValueError):
        return path
    if number not in table.names:
        return path
    before = [tag >> 3 == number for tag, *_ in islice(fields(data, begin, at), _COUNTED)]
    return _join(path, table, number, sum(before) if len(before) < _COUNTED else None)


def _join(path: str, table: _Table, number: int, index: int | None) -> str:
    name, is_repeated = table.names[number]
    step = f"{name}[{index}]" if is_repeated and index is not None else name
    return f"{path}.{step}" if path else step
