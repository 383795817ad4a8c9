"""How memories lie on disk, but plain sums: a JSON header that names its arrays, their bytes, sha256 of all before it.

8   b"EVLMEMO1"
4   uint32: bytes of the header
.   header: {"version", "kind", "state": {...}, "arrays": [[name, dtype, shape], ...]}
.   the arrays one after the other, little endian, row by row
32  sha256
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt

from everlearn.errors import DataLossError, InvalidError
from everlearn.spec.model import Memory as Declared

MAGIC: Final = b"EVLMEMO1"
VERSION: Final = 1
DIGEST_BYTES: Final = 32
DTYPES: Final = frozenset({"|u1", "|i1", "<i2", "<u2", "<f2", "<i4", "<f4", "<i8", "<f8"})

Arrays = Mapping[str, npt.NDArray[Any]]
Option = TypeVar("Option")
Kind = TypeVar("Kind")


def dump(kind: str, state: Mapping[str, object], arrays: Arrays) -> bytes:
    """Bytes of a memory. `state` is what JSON can say."""
    little = {name: _little(array) for name, array in arrays.items()}
    header = json.dumps(
        {
            "version": VERSION,
            "kind": kind,
            "state": dict(state),
            "arrays": [[name, array.dtype.str, array.shape] for name, array in little.items()],
        }
    ).encode()
    begin = MAGIC + struct.pack("<I", len(header)) + header
    # As raw bytes: no copy of an array but the one that joins them.
    parts = [memoryview(begin), *(array.reshape(-1).view(np.uint8).data for array in little.values())]
    seal = hashlib.sha256()
    for part in parts:
        seal.update(part)
    return b"".join([*parts, seal.digest()])


def parse(kind: str, data: bytes) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
    """State and arrays, writable, of what `dump` wrote. Raises DataLossError for anything else."""
    body, seal = memoryview(data)[:-DIGEST_BYTES], data[-DIGEST_BYTES:]
    if not data.startswith(MAGIC) or len(data) < len(MAGIC) + 4 + DIGEST_BYTES:
        raise DataLossError(f"these bytes are not a memory of kind {kind}: they do not begin as one")
    if hashlib.sha256(body).digest() != seal:
        raise DataLossError("these bytes are damaged: their sha256 is not the one they end with")
    with sealed():
        return _parse_sealed(kind, body)


def declared_as(kind: str, declared: Declared | None, present: Declared | None = None) -> Declared:
    """The options of a memory of `kind`, defaults filled in. Raises InvalidError for those of another kind, or where
    what does not change in place differs from `present`."""
    declared = declared or Declared(kind=kind)
    if declared.kind != kind:
        raise InvalidError(f"options of memory {declared.kind}; this is one of kind {kind}", field="spec.memory.kind")
    for name in ("bits", "precision") if present else ():
        then, now = getattr(present, name), getattr(declared, name)
        if then != now:
            raise InvalidError(
                f"{name} was {then} and cannot become {now} in place; start a new memory", field=f"spec.memory.{name}"
            )
    return declared


def alike(other: object, kind: type[Kind]) -> Kind:
    """A memory that can be taken out of one of `kind`. Raises InvalidError for one of another."""
    if not isinstance(other, kind):
        raise InvalidError(f"a {type(other).__name__} is no part of a {kind.__name__}", field="memory")
    return other


def column(arrays: Arrays, name: str, dtype: npt.DTypeLike, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """An array that `parse` gave. Raises ValueError or KeyError where it is not what it must be."""
    array = arrays[name]
    if array.shape != shape or array.dtype != np.dtype(dtype):
        raise ValueError(f"array {name} is {array.dtype} {array.shape}; it must be {np.dtype(dtype)} {shape}")
    return array


def declared_from(kind: str, state: Mapping[str, Any]) -> Declared:
    """The options that a state holds as `declared`."""
    return declared_as(kind, Declared.model_validate(state["declared"]))


def filled(option: Option | None) -> Option:
    """An option that a declaration of its kind always has."""
    assert option is not None, "the declaration fills it in"
    return option


@contextmanager
def sealed() -> Iterator[None]:
    """Whatever does not fit in bytes whose digest is right is a DataLossError, too: another program sealed them."""
    try:
        yield
    except (ValueError, KeyError, TypeError, IndexError, OverflowError, AttributeError, struct.error) as error:
        raise DataLossError(f"these bytes are sealed but not a memory: {error}") from error
    except InvalidError as error:
        raise DataLossError(f"these bytes are sealed but not a memory: {error}") from error


def _parse_sealed(kind: str, body: memoryview) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
    start = len(MAGIC) + 4
    end = start + struct.unpack("<I", body[len(MAGIC) : start])[0]
    header = json.loads(bytes(body[start:end]))
    if header["version"] != VERSION:
        raise ValueError(f"version {header['version']}; this release reads version {VERSION}")
    if header["kind"] != kind:
        raise ValueError(f"it is of kind {header['kind']!r}, not {kind!r}")
    arrays = {}
    for name, dtype, shape in header["arrays"]:
        if dtype not in DTYPES or any(side < 0 for side in shape):
            raise ValueError(f"array {name!r} is {dtype} {shape}")
        count = math.prod(shape)
        arrays[name] = np.frombuffer(body, dtype, count, end).reshape(shape).astype(np.dtype(dtype).newbyteorder("="))
        end += count * np.dtype(dtype).itemsize
    if end != len(body):
        raise ValueError(f"{len(body) - end} bytes too many")
    return dict(header["state"]), arrays


def _little(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False)
