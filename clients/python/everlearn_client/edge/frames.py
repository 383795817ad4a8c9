"""How records lie in a segment of the spool, so that a power cut or a rotten bit costs one record and no more.

magic (4 bytes), length of the body (4), CRC-32 (4) of length and body begun with the segment's salt, body

The salt is random and in the file's name: bytes inside a body that look like a record, by chance or by somebody's
intent, are never taken for one when the reader looks for the next record behind a damaged one.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

MAGIC: Final = b"eSp1"
_HEAD: Final = struct.Struct("<4sII")
_BODY: Final = struct.Struct("<QdIB")
FRAME_BYTES: Final = _HEAD.size
"""What a frame adds to its body."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One record of a segment, without what it carries."""

    number: int
    boot: int
    """Opening of the spool that put it in; (boot, number) never comes twice."""
    put_s: float
    """On the spool's own clock."""
    samples: int
    feature_digest: str
    """Of the trunk that computed its features; empty where it carries none."""
    offset: int
    """Of its frame."""
    size_bytes: int
    """Of its frame."""


@dataclass(frozen=True)
class Damage:
    """Bytes that are no record: a torn end, or rot."""

    offset: int
    end: int


def body_of(number: int, put_s: float, samples: int, feature_digest: str, payload: bytes) -> bytes:
    """A record as it is framed."""
    digest = feature_digest.encode()
    return _BODY.pack(number, put_s, samples, len(digest)) + digest + payload


def payload_of(body: bytes) -> bytes:
    """What a record carries."""
    return body[_BODY.size + body[_BODY.size - 1] :]


def framed(body: bytes, salt: int) -> bytes:
    """A body with what tells that it is whole."""
    return _HEAD.pack(MAGIC, len(body), _sum(body, salt)) + body


def body_at(data: bytes, offset: int, salt: int) -> bytes | None:
    """The body of the frame that begins there; None where there is no whole one."""
    if len(data) - offset < FRAME_BYTES + _BODY.size:
        return None
    magic, length, checksum = _HEAD.unpack_from(data, offset)
    begin = offset + FRAME_BYTES
    if magic != MAGIC or not _BODY.size <= length <= len(data) - begin:
        return None
    body = data[begin : begin + length]
    return body if _sum(body, salt) == checksum else None


def scan(data: bytes, *, boot: int, salt: int) -> Iterator[Entry | Damage]:
    """All records of a segment in order, and what lies between them that is none."""
    offset = 0
    while offset < len(data):
        body = body_at(data, offset, salt)
        if body is None:
            found = _next_frame(data, offset + 1, salt)
            yield Damage(offset, found)
            offset = found
            continue
        number, put_s, samples, digest_bytes = _BODY.unpack_from(body)
        digest = body[_BODY.size : _BODY.size + digest_bytes].decode("ascii", "replace")
        size = FRAME_BYTES + len(body)
        yield Entry(
            number=number,
            boot=boot,
            put_s=put_s,
            samples=samples,
            feature_digest=digest,
            offset=offset,
            size_bytes=size,
        )
        offset += size


def _next_frame(data: bytes, offset: int, salt: int) -> int:
    """Where the next whole record begins, or the end."""
    while (offset := data.find(MAGIC, offset)) >= 0:
        if body_at(data, offset, salt) is not None:
            return offset
        offset += 1
    return len(data)


def _sum(body: bytes, salt: int) -> int:
    return zlib.crc32(body, zlib.crc32(len(body).to_bytes(4, "little"), salt))
