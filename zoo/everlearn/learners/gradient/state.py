"""How a learner lies on disk: magic, JSON header, tensors as safetensors, the memory's own bytes, sha256 of it all.

8   b"EVLGRAD1"
4   uint32, little endian: bytes of the header
.   header: {"version", "tensor_bytes", "memory_bytes", ...}
.   safetensors
.   memory
32  sha256
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors import torch as safetensors

from everlearn.errors import DataLossError

MAGIC: Final = b"EVLGRAD1"
VERSION: Final = 1
_DIGEST_BYTES: Final = 32
_START: Final = len(MAGIC) + 4


@dataclass(frozen=True, kw_only=True)
class State:
    """Everything that a learner is, without code."""

    tensors: Mapping[str, torch.Tensor]
    header: Mapping[str, Any]
    """JSON-able."""
    memory: bytes = b""

    def part(self, prefix: str) -> dict[str, torch.Tensor]:
        """Tensors whose names begin so, without it."""
        return {name[len(prefix) :]: value for name, value in self.tensors.items() if name.startswith(prefix)}


def pack(state: State) -> bytes:
    """Bytes of a state; equal states give equal bytes."""
    # Copies: safetensors refuses views and tensors that share memory.
    tensors = {name: state.tensors[name].detach().cpu().clone().contiguous() for name in sorted(state.tensors)}
    blob = safetensors.save(tensors)
    sizes = {"version": VERSION, "tensor_bytes": len(blob), "memory_bytes": len(state.memory)}
    header = json.dumps({**state.header, **sizes}, sort_keys=True).encode()
    body = b"".join([MAGIC, struct.pack("<I", len(header)), header, blob, state.memory])
    return body + hashlib.sha256(body).digest()


def unpack(data: bytes) -> State:
    """What `pack` wrote. Raises DataLossError for anything else."""
    if not data.startswith(MAGIC) or len(data) < _START + _DIGEST_BYTES:
        raise DataLossError("these bytes are not a gradient learner: they do not begin as one")
    body = memoryview(data)[:-_DIGEST_BYTES]
    if hashlib.sha256(body).digest() != data[-_DIGEST_BYTES:]:
        raise DataLossError("these bytes are damaged: their sha256 is not the one they end with")
    try:
        end = _START + struct.unpack("<I", body[len(MAGIC) : _START])[0]
        header = json.loads(bytes(body[_START:end]))
        if header["version"] != VERSION:
            raise ValueError(f"version {header['version']}; this release reads version {VERSION}")
        middle = end + int(header["tensor_bytes"])
        if len(body) != middle + int(header["memory_bytes"]):
            raise ValueError("its parts do not add up to its length")
        tensors = safetensors.load(bytes(body[end:middle]))
    except (ValueError, KeyError, TypeError, struct.error, SafetensorError) as error:
        raise DataLossError(f"these bytes are sealed but not a gradient learner: {error}") from error
    return State(tensors=tensors, header=header, memory=bytes(body[middle:]))
