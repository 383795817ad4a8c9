"""Hostile safetensors headers are refused before anything allocates by what they say; honest ones pass."""

from __future__ import annotations

import hashlib
import json
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from everlearn.errors import ForbiddenFileError
from everlearn.hubs._safetensors import check_safetensors

ONE = {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}


def written(path: Path, header: Any, data: bytes = b"", *, length: int | None = None) -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + data)
    return path


def test_an_honest_file_tells_names_dtypes_and_shapes(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    arrays = {"w": np.zeros((3, 4), np.float32), "n": np.zeros((), np.int64), "empty": np.zeros((0, 5), np.float16)}
    path.write_bytes(save(arrays, metadata={"format": "pt"}))
    assert check_safetensors(path) == {"w": ("F32", (3, 4)), "n": ("I64", ()), "empty": ("F16", (0, 5))}


HOSTILE: dict[str, tuple[Any, bytes, int | None]] = {
    "empty length": (b"", b"", None),
    "claims more than the file": (ONE, bytes(8), 2**62),
    "claims 2^64 - 1": (ONE, bytes(8), 2**64 - 1),
    "not json": (b"{nope", bytes(8), None),
    "a list": (b"[]", b"", None),
    "not utf-8": (b'{"\xff": 1}', b"", None),
    "deep": (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", b"", None),
    "nan": (b'{"a": NaN}', b"", None),
    "same name twice": (b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"a":{}}', b"", None),
    "missing data": (ONE, bytes(7), None),
    "trailing data": (ONE, bytes(9), None),
    "hole": ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, bytes(8), None),
    "overlap": (
        {
            "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
            "b": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]},
        },
        bytes(8),
        None,
    ),
    "offsets backwards": ({"a": {"dtype": "U8", "shape": [0], "data_offsets": [8, 0]}}, bytes(8), None),
    "negative offset": ({"a": {"dtype": "U8", "shape": [8], "data_offsets": [-8, 0]}}, b"", None),
    "shape does not fit": ({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}, bytes(8), None),
    "negative shape": ({"a": {"dtype": "F32", "shape": [-1, -2], "data_offsets": [0, 8]}}, bytes(8), None),
    "shape of truth": ({"a": {"dtype": "U8", "shape": [True], "data_offsets": [0, 1]}}, bytes(1), None),
    "float shape": ({"a": {"dtype": "U8", "shape": [8.0], "data_offsets": [0, 8]}}, bytes(8), None),
    "shape times zero": ({"a": {"dtype": "U8", "shape": [2**60, 0], "data_offsets": [0, 0]}}, b"", None),
    "rank": ({"a": {"dtype": "U8", "shape": [1] * 100, "data_offsets": [0, 1]}}, bytes(1), None),
    "unknown dtype": ({"a": {"dtype": "PICKLE", "shape": [8], "data_offsets": [0, 8]}}, bytes(8), None),
    "dtype is a list": ({"a": {"dtype": ["U8"], "shape": [8], "data_offsets": [0, 8]}}, bytes(8), None),
    "extra key": ({"a": {**ONE["a"], "url": "x"}}, bytes(8), None),
    "entry is text": ({"a": "b"}, b"", None),
    "three offsets": ({"a": {"dtype": "U8", "shape": [8], "data_offsets": [0, 4, 8]}}, bytes(8), None),
    "metadata of numbers": ({"__metadata__": {"a": 1}, **ONE}, bytes(8), None),
    "metadata is a list": ({"__metadata__": [], **ONE}, bytes(8), None),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_header_is_refused(tmp_path: Path, case: str) -> None:
    header, data, length = HOSTILE[case]
    with pytest.raises(ForbiddenFileError, match="not a well-formed safetensors file"):
        check_safetensors(written(tmp_path / "x.safetensors", header, data, length=length))


def test_a_pickle_by_another_name_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"\x80\x04cposix\nsystem\n(S'true'\ntR.")
    with pytest.raises(ForbiddenFileError):
        check_safetensors(path)


def test_a_huge_header_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with path.open("wb") as stream:
        stream.write(struct.pack("<Q", 90_000_000) + b"{")
        stream.truncate(100_000_000)
    tracemalloc.start()
    with pytest.raises(ForbiddenFileError, match="more than"):
        check_safetensors(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(st.binary(max_size=64), st.integers(min_value=0, max_value=400))
def test_any_damage_is_refused_or_harmless(tmp_path: Path, noise: bytes, at: int) -> None:
    honest = save({"w": np.zeros((3, 4), np.float32), "b": np.ones((2,), np.int8)})
    at = min(at, len(honest))
    damaged = honest[:at] + noise + honest[at + len(noise) :]
    path = tmp_path / f"{hashlib.sha256(damaged).hexdigest()}.safetensors"
    path.write_bytes(damaged)
    try:
        tensors = check_safetensors(path)
    except ForbiddenFileError:
        return
    for dtype, shape in tensors.values():
        assert np.prod(shape, dtype=object) <= len(damaged), dtype
