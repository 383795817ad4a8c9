"""How a gradient learner lies on disk, as far as it can be read without torch.

8   b"EVLGRAD1"
4   uint32, little endian: bytes of the header
.   header: {"version", "tensor_bytes", "memory_bytes", ...}
.   safetensors
.   memory
32  sha256 of all before it
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from everlearn.errors import DataLossError

MAGIC: Final = b"EVLGRAD1"
VERSION: Final = 1
DIGEST_BYTES: Final = 32
_START: Final = len(MAGIC) + 4


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The parts, unread."""

    header: Mapping[str, Any]
    tensors: bytes
    """safetensors."""
    memory: bytes


def join(header: Mapping[str, Any], tensors: bytes, memory: bytes) -> bytes:
    """Parts as bytes; `header` is JSON-able, and gets version and sizes."""
    sizes = {"version": VERSION, "tensor_bytes": len(tensors), "memory_bytes": len(memory)}
    encoded = json.dumps({**header, **sizes}, sort_keys=True).encode()
    body = b"".join([MAGIC, struct.pack("<I", len(encoded)), encoded, tensors, memory])
    return body + hashlib.sha256(body).digest()


def split(data: bytes) -> Layout:
    """What `join` wrote. Raises DataLossError for anything else."""
    if not data.startswith(MAGIC) or len(data) < _START + DIGEST_BYTES:
        raise DataLossError("these bytes are not a gradient learner: they do not begin as one")
    body = memoryview(data)[:-DIGEST_BYTES]
    if hashlib.sha256(body).digest() != data[-DIGEST_BYTES:]:
        raise DataLossError("these bytes are damaged: their sha256 is not the one they end with")
    try:
        end = _START + struct.unpack("<I", body[len(MAGIC) : _START])[0]
        header = json.loads(bytes(body[_START:end]))
        if header["version"] != VERSION:
            raise ValueError(f"version {header['version']}; this release reads version {VERSION}")
        middle = end + int(header["tensor_bytes"])
        if len(body) != middle + int(header["memory_bytes"]):
            raise ValueError("its parts do not add up to its length")
    except (ValueError, KeyError, TypeError, struct.error) as error:
        raise DataLossError(f"these bytes are sealed but not a gradient learner: {error}") from error
    return Layout(header=header, tensors=bytes(body[end:middle]), memory=bytes(body[middle:]))
