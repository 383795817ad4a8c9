"""How sums lie on disk: magic, length and JSON header, integers, sha256 of all before it. Little endian throughout.

    8   b"EVLSUMS1"
    4   uint32: bytes of the header
    .   header: {"version": 1, "dim", "labels", "counts", "sum_bytes", "gram_bytes"}
    .   S row by row, then the lower triangle of G column by column, each in 4, 5, 6 or 8 bytes a number
    32  sha256

Sums that have decayed are floats: {"version": 2, "dim", "labels", "counts"} with the counts written so that they read
back bit for bit, and every number of S and G as a float64.

A number in w bytes lies as two planes, low 32 bits of all, then the rest of all: 5 bytes last until a sum of squares
reaches 2^39, some million samples, where 8 would cost 60 % more disk at each commit.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from everlearn.errors import DataLossError

MAGIC: Final = b"EVLSUMS1"
EXACT: Final = 1
DECAYED: Final = 2
"""Versions; both are read, and exact sums are written as ever."""
HIGH: Final = {4: None, 5: "<i1", 6: "<i2", 8: "<i4"}
"""Bytes of a number -> dtype of what is above its low 32 bits."""
FLOAT: Final = 0
"""Stands for 8 bytes a float64."""
DIGEST_BYTES: Final = 32

Float = npt.NDArray[np.float64]
Count = npt.NDArray[np.int64]


def packed_lower(lower_dd: Float) -> Float:
    """The lower triangle, column by column: d (d + 1) / 2 numbers."""
    return np.concatenate([lower_dd[column:, column] for column in range(lower_dd.shape[0])])


def dump(labels: Sequence[str], count_C: Count | Float, sum_Cd: Float, lower_dd: Float) -> bytes:
    """Bytes of a state: of an exact one where the counts are integers."""
    header: dict[str, object] = {
        "version": EXACT,
        "dim": lower_dd.shape[0],
        "labels": list(labels),
        "counts": count_C.tolist(),
    }
    if count_C.dtype == np.int64:
        sums, gram = sum_Cd.astype(np.int64).ravel(), packed_lower(lower_dd).astype(np.int64)
        header |= {"sum_bytes": _width(sums), "gram_bytes": _width(gram)}
        planes = [*_planes(sums), *_planes(gram)]
    else:
        header["version"] = DECAYED
        planes = [sum_Cd.astype("<f8").tobytes(), packed_lower(lower_dd).astype("<f8").tobytes()]
    encoded = json.dumps(header).encode()
    parts = [MAGIC, struct.pack("<I", len(encoded)), encoded, *planes]
    seal = hashlib.sha256()
    for part in parts:
        seal.update(part)
    return b"".join([*parts, seal.digest()])


def parse(data: bytes) -> tuple[list[str], Count | Float, Float, Float]:
    """labels, count_C, sum_Cd and the lower triangle (column-major) of what `dump` wrote; DataLossError otherwise."""
    body, seal = memoryview(data)[:-DIGEST_BYTES], data[-DIGEST_BYTES:]
    if not data.startswith(MAGIC) or len(data) < len(MAGIC) + 4 + DIGEST_BYTES:
        raise DataLossError("these bytes are not a memory: they do not begin as one")
    if hashlib.sha256(body).digest() != seal:
        raise DataLossError("these bytes are damaged: their sha256 is not the one they end with")
    try:
        return _parse_sealed(body)
    except (ValueError, KeyError, TypeError, struct.error) as error:
        raise DataLossError(f"these bytes are sealed but not a memory: {error}") from error


def pack(values: Count) -> tuple[int, list[bytes]]:
    """Bytes of a number, and the planes in which the numbers lie."""
    return _width(values), _planes(values)


def unpack(body: memoryview, start: int, count: int, width: int) -> tuple[Float, int]:
    """`count` numbers that `pack` wrote, from `start`, and where they end. Raises ValueError where they are cut off."""
    return _read(body, start, count, width)


def _parse_sealed(body: memoryview) -> tuple[list[str], Count | Float, Float, Float]:
    start = len(MAGIC) + 4
    end = start + struct.unpack("<I", body[len(MAGIC) : start])[0]
    header = json.loads(bytes(body[start:end]))
    if header["version"] not in (EXACT, DECAYED):
        raise ValueError(f"version {header['version']}; this release reads versions {EXACT} and {DECAYED}")
    exact = header["version"] == EXACT
    dim, labels = int(header["dim"]), [str(label) for label in header["labels"]]
    counts = header["counts"]
    count_C: Count | Float = np.array(counts, np.int64) if exact else np.array(counts, np.float64)
    if dim < 1 or count_C.shape != (len(labels),) or len(set(labels)) < len(labels) or not (count_C >= 0).all():
        raise ValueError("its header contradicts itself")
    sums, end = _read(body, end, len(labels) * dim, header["sum_bytes"] if exact else FLOAT)
    gram, end = _read(body, end, dim * (dim + 1) // 2, header["gram_bytes"] if exact else FLOAT)
    if end != len(body):
        raise ValueError(f"{len(body) - end} bytes too many")
    lower_dd, start = np.zeros((dim, dim), order="F"), 0
    for column in range(dim):
        lower_dd[column:, column] = gram[start : start + dim - column]
        start += dim - column
    return labels, count_C, sums.reshape(len(labels), dim), lower_dd


def _width(values: Count) -> int:
    """Fewest bytes that hold every value."""
    if not values.size:
        return 4
    low, high = int(values.min()), int(values.max())
    return next(width for width in HIGH if -(1 << (8 * width - 1)) <= low and high < 1 << (8 * width - 1))


def _planes(values: Count) -> list[bytes]:
    high = HIGH[_width(values)]
    if high is None:
        return [values.astype("<i4").tobytes()]
    return [(values & 0xFFFFFFFF).astype("<u4").tobytes(), (values >> 32).astype(high).tobytes()]


def _read(body: memoryview, start: int, count: int, width: int) -> tuple[Float, int]:
    """`count` numbers from `start`, and where they end."""
    end = start + count * (width or 8)
    if end > len(body):
        raise ValueError("it is too short")
    if width == FLOAT:
        return np.frombuffer(body, "<f8", count, start).astype(np.float64), end
    high = HIGH[width]
    if high is None:
        return np.frombuffer(body, "<i4", count, start).astype(np.float64), end
    low = np.frombuffer(body, "<u4", count, start).astype(np.float64)
    rest = np.frombuffer(body, high, count, start + 4 * count).astype(np.float64)
    return rest * 2.0**32 + low, end
