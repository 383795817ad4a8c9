"""Messages made wrong: in their bytes, on the wire, or in their values. The same seed makes the same ones."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from tests import bombs

TEXTS = (
    "", " ", "\x00", "\U0001f980" * 70, "a" * 257, "../../etc/passwd", "..", "/", "models/", "models/tiny/..", "\u202e",
    "9" * 40, "%2e%2e%2f", "a\nb", "{}", "null", "-1", "models/tiny/versions/0", "models/" + "a" * 64, "é" * 200,
)  # fmt: skip
NUMBERS = (0, 1, 2, 3, 4, 5, 8, 255, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, -1, -(2**31), -(2**63))


def mutated(data: bytes, rng: random.Random) -> bytes:
    """One to four edits: bytes flipped, cut out, doubled, put in, or the end lost."""
    found = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        # Most where lengths and tags are: payloads take any byte.
        at = rng.randrange(max(1, min(len(found), 80) if rng.random() < 0.7 else len(found)))
        match rng.randrange(6):
            case 0 if found:
                found[at % len(found)] ^= 1 << rng.randrange(8)
            case 1 if found:
                found[at % len(found)] = rng.choice((0, 0x7F, 0x80, 0xFF))
            case 2:
                del found[at : at + rng.randint(1, 8)]
            case 3:
                found[at:at] = found[at : at + rng.randint(1, 32)]
            case 4:
                found[at:at] = rng.randbytes(rng.randint(1, 8))
            case _:
                del found[rng.randrange(len(found) + 1) :]
    return bytes(found)


def altered(message: Any, rng: random.Random) -> bytes:
    """A message that parses, with one to three of its values made strange."""
    changed = type(message)()
    changed.CopyFrom(message)
    for _ in range(rng.randint(1, 3)):
        holders = list(_holders(changed))
        if holders:
            _make_strange(*rng.choice(holders), rng)
    return bytes(changed.SerializeToString())


def invalid_on_the_wire(data: bytes, rng: random.Random) -> bytes:
    """What is refused whatever message it is: a broken length or tag, groups, or more than anybody needs."""
    match rng.randrange(7):
        case 0:
            return (
                data + bombs.varint(rng.randint(1, 2**20) << 3 | 2) + bombs.varint(rng.choice((1, 200, 2**31, 2**62)))
            )
        case 1:
            return data + bytes([rng.choice((0x0B, 0x1B, 0x7B))]) * rng.randint(1, 300)
        case 2:  # a group that ends, as protobuf reads it
            tag = rng.randint(1, 900) << 3
            return data + bombs.varint(tag | 3) + bombs.varint(tag | 4)
        case 3:
            return data + b"\xff" * rng.randint(1, 30)
        case 4:
            return data + bombs.varint(rng.randint(1, 900) << 3) + b"\x80" * rng.randint(10, 2000)
        case 5:
            return data + (bombs.varint(rng.randint(1000, 9000) << 3) + b"\x01") * rng.randint(260, 4000)
        case _:
            return bytes([rng.choice((6, 7, 0))]) + data


def _holders(message: Any) -> Iterator[tuple[Any, Any]]:
    for field, value in message.ListFields():
        if field.message_type is None:
            yield message, field
        elif field.message_type.GetOptions().map_entry:
            for key in value:
                if hasattr(value[key], "ListFields"):
                    yield from _holders(value[key])
        else:
            for part in value if field.is_repeated else [value]:
                yield from _holders(part)


def _make_strange(holder: Any, field: Any, rng: random.Random) -> None:
    if not field.is_repeated:
        setattr(holder, field.name, _strange(getattr(holder, field.name), field, rng))
        return
    values = list(getattr(holder, field.name))
    at = rng.randrange(len(values))
    values[at] = _strange(values[at], field, rng)
    if rng.random() < 0.3:
        values = values[:-1] if rng.random() < 0.5 else values * 3
    del getattr(holder, field.name)[:]
    getattr(holder, field.name).extend(values)


def _strange(value: Any, field: Any, rng: random.Random) -> Any:
    if isinstance(value, bytes):
        return mutated(value, rng)
    if isinstance(value, str):
        return rng.choice((*TEXTS, value * 40, value + "/..", value[: rng.randrange(len(value) + 1)]))
    if isinstance(value, bool):
        return not value
    if isinstance(value, float):
        return rng.choice((float("nan"), float("inf"), -1.0, 0.0, 1e30, -1e-30))
    if field.type == field.TYPE_ENUM:
        return rng.randrange(7)
    if field.type in (field.TYPE_UINT64, field.TYPE_FIXED64):
        return rng.choice([number for number in NUMBERS if number >= 0])
    if field.type in (field.TYPE_UINT32, field.TYPE_FIXED32):
        return rng.choice([number for number in NUMBERS if 0 <= number < 2**32])
    small = field.type in (field.TYPE_INT32, field.TYPE_SINT32, field.TYPE_SFIXED32)
    return rng.choice([number for number in NUMBERS if not small or -(2**31) <= number < 2**31])
