"""The outermost layer of a delta, little-endian:

magic "EL-delta", format u32, crc32 of all that follows u32,
sha256 of the base, sha256 of the target, their sizes u64 each,
size of the plan u32, size of its zstd frame u32, that frame, then the streams' frames one behind the other
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

from everlearn_protos.delta._errors import DeltaError
from everlearn_protos.delta._frames import compressed, decompressed

MAGIC = b"EL-delta"
FORMAT = 1
MAX_PLAN = 2**20
"""Bytes of a plan: room for some 50,000 segments."""
_START = struct.Struct("<8sII")
_FIELDS = struct.Struct("<32s32sQQII")


@dataclass(frozen=True, kw_only=True)
class Envelope:
    """What a delta is about, and its parts, still packed."""

    base_sha256: bytes
    base_size: int
    target_sha256: bytes
    target_size: int
    plan: bytes
    streams: memoryview

    @classmethod
    def read(cls, delta: bytes) -> Envelope:
        """Raises DeltaError for what is damaged, cut off, of another format, or no delta."""
        if len(delta) < _START.size + _FIELDS.size or delta[: len(MAGIC)] != MAGIC:
            raise DeltaError(f"{len(delta)} bytes that are not a delta; one begins with {MAGIC.decode()}")
        _, number, checksum = _START.unpack_from(delta)
        if number != FORMAT:
            raise DeltaError(f"the delta has format {number}; this release reads format {FORMAT}")
        view = memoryview(delta)
        if zlib.crc32(view[_START.size :]) != checksum:
            raise DeltaError("the delta arrived damaged or is cut off: its checksum is another; download it again")
        base, target, base_size, target_size, plan_size, frame_size = _FIELDS.unpack_from(delta, _START.size)
        rest = view[_START.size + _FIELDS.size :]
        if plan_size > MAX_PLAN or frame_size > len(rest):
            raise DeltaError(f"a plan of {plan_size} bytes, {frame_size} compressed, cannot be in {len(rest)} bytes")
        return cls(
            base_sha256=base,
            base_size=base_size,
            target_sha256=target,
            target_size=target_size,
            plan=decompressed(rest[:frame_size], plan_size),
            streams=rest[frame_size:],
        )

    def packed(self) -> bytes:
        """The delta."""
        plan = compressed(self.plan, 19)
        fields = _FIELDS.pack(
            self.base_sha256, self.target_sha256, self.base_size, self.target_size, len(self.plan), len(plan)
        )
        rest = b"".join((fields, plan, self.streams))
        return _START.pack(MAGIC, FORMAT, zlib.crc32(rest)) + rest
