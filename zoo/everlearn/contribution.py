"""What one batch contributed to a model, as bytes: integers of its features as they were learned, and what is true of
them. Small, because clients keep one for every batch that they may want to have taken out again.

A byte that says how it is packed, then the same as `canonical`, which digests and seals are made of:

4   uint32, little endian: bytes of the header
.   header: JSON {"dim", "labels" | "sets" | "values"}
.   float64 of values, little endian
.   int16 of features, little endian, low bytes of all first: the high ones of 12-bit integers compress well

Axes: B samples, d features, K outputs.
"""

from __future__ import annotations

import json
import struct
import zlib
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np

from everlearn.errors import DataLossError
from everlearn.truth import LabelSets, Truth, Values
from everlearn.values import QuantisedBd

_DEFLATED: Final = b"\x01"
_LEVEL: Final = 1
"""Of zlib: higher ones take several times as long for a few per cent."""
_LENGTH: Final = struct.Struct("<I")


@dataclass(frozen=True, kw_only=True, eq=False)
class Contribution:
    """One batch, as it was learned."""

    quantised_Bd: QuantisedBd
    truth: Truth

    @property
    def samples(self) -> int:
        """B."""
        return len(self.quantised_Bd)

    @property
    def canonical(self) -> bytes:
        """Equal batches give equal bytes."""
        header: dict[str, Any] = {"dim": self.quantised_Bd.shape[1], "samples": self.samples}
        values = b""
        if isinstance(self.truth, Values):
            values_BK = np.ascontiguousarray(self.truth.values_BK, "<f8")
            header["values"], values = values_BK.shape[1], values_BK.tobytes()
        elif isinstance(self.truth, LabelSets):
            header["sets"] = [list(labels) for labels in self.truth.sets_B]
        else:
            header["labels"] = list(self.truth)
        told = json.dumps(header, ensure_ascii=False).encode()
        planes = np.ascontiguousarray(self.quantised_Bd, "<i2").reshape(-1).view(np.uint8).reshape(-1, 2).T
        return b"".join([_LENGTH.pack(len(told)), told, values, planes.tobytes()])

    def packed(self) -> bytes:
        """For `parse`: `canonical`, compressed."""
        return _DEFLATED + zlib.compress(self.canonical, _LEVEL)

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """What `packed` gave. Raises DataLossError for anything else; only for bytes that were sealed."""
        try:
            if data[:1] != _DEFLATED:
                raise ValueError(f"packed as {data[:1]!r}")
            return cls._parse(zlib.decompress(data[1:]))
        except (ValueError, KeyError, TypeError, struct.error, zlib.error) as error:
            raise DataLossError(f"these bytes are no contribution of a batch ({type(error).__name__})") from error

    @classmethod
    def _parse(cls, body: bytes) -> Self:
        start = _LENGTH.size
        end = start + _LENGTH.unpack_from(body)[0]
        header = json.loads(body[start:end])
        samples, dim = int(header["samples"]), int(header["dim"])
        truth: Truth
        if "values" in header:
            outputs = int(header["values"])
            truth = Values(np.frombuffer(body, "<f8", samples * outputs, end).reshape(samples, outputs))
            end += 8 * samples * outputs
        elif "sets" in header:
            truth = LabelSets(tuple(tuple(labels) for labels in header["sets"]))
        else:
            truth = tuple(header["labels"])
        planes = np.frombuffer(body, np.uint8, 2 * samples * dim, end).reshape(2, -1)
        if end + planes.size != len(body) or len(truth) != samples:
            raise ValueError("its parts do not add up to its length")
        quantised_Bd = np.ascontiguousarray(planes.T).view("<i2").reshape(samples, dim).astype(np.int16)
        return cls(quantised_Bd=quantised_Bd, truth=truth)
