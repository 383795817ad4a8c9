"""Reads a safetensors header with suspicion, before anything allocates by what it says.

Format: github.com/huggingface/safetensors, "Format": 8-byte little-endian length N, N bytes of JSON
`{name: {dtype, shape, data_offsets: [begin, end]}, "__metadata__": {str: str}}`, then the data, tiled without holes.
"""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any, NoReturn

from everlearn.errors import ForbiddenFileError
from everlearn.strict_json import unique_keys

MAX_HEADER_BYTES = 4 * 2**20
"""About 40,000 tensors; the format allows 100 MB, which as JSON can take gigabytes to parse."""
MAX_RANK = 16
MAX_DIM = 2**40

ITEM_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64"), 8),
}


def check_safetensors(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Names, dtypes and shapes of a well-formed file.

    Raises ForbiddenFileError for anything else: lengths and offsets that do not add up to the file's size, overlaps,
    holes, names that come twice, unknown dtypes, huge or deep JSON.
    """
    header, data_bytes = _read_header(path)
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {}
    spans: list[tuple[int, int, str]] = []
    for name, entry in header.items():
        if name == "__metadata__":
            _check_metadata(path, entry)
            continue
        dtype, shape, begin, end = _check_tensor(path, name, entry)
        tensors[name] = (dtype, shape)
        spans.append((begin, end, name))
    position = 0
    for begin, end, name in sorted(spans):
        if begin != position:
            _refuse(path, f"tensor {name[:80]!r} begins at {begin}, where {position} would be right")
        position = end
    if position != data_bytes:
        _refuse(path, f"its tensors cover {position} bytes of {data_bytes}")
    return tensors


def _read_header(path: Path) -> tuple[dict[str, Any], int]:
    size = path.stat().st_size
    with path.open("rb") as stream:
        prefix = stream.read(8)
        if len(prefix) < 8:
            _refuse(path, f"it has {size} bytes, less than a header")
        (length,) = struct.unpack("<Q", prefix)
        if length > size - 8:
            _refuse(path, f"its header claims {length} bytes, and {size - 8} are there")
        if length > MAX_HEADER_BYTES:
            _refuse(path, f"its header has {length} bytes, more than the {MAX_HEADER_BYTES} that are read")
        raw = stream.read(length)
    if not raw.startswith(b"{"):
        _refuse(path, "its header is not a JSON object")
    try:
        header = json.loads(raw.decode(), object_pairs_hook=unique_keys, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        _refuse(path, f"its header is not JSON that can be read ({type(error).__name__})")
    return header, size - 8 - length


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")


def _check_metadata(path: Path, entry: object) -> None:
    if not isinstance(entry, dict) or not all(isinstance(value, str) for value in entry.values()):
        _refuse(path, "its __metadata__ does not map strings to strings")


def _check_tensor(path: Path, name: str, entry: object) -> tuple[str, tuple[int, ...], int, int]:
    shown = name[:80]
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        _refuse(path, f"tensor {shown!r} does not have exactly dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        _refuse(path, f"tensor {shown!r} has the unknown dtype {str(dtype)[:40]!r}")
    if not _naturals(shape) or len(shape) > MAX_RANK or any(dim > MAX_DIM for dim in shape):
        _refuse(path, f"tensor {shown!r} has an impossible shape")
    if not _naturals(offsets) or len(offsets) != 2:
        _refuse(path, f"tensor {shown!r} has impossible data_offsets")
    begin, end = offsets
    needed = math.prod(shape) * ITEM_BYTES[dtype]
    if end - begin != needed:
        _refuse(path, f"tensor {shown!r} needs {needed} bytes, and its offsets span {end - begin}")
    return dtype, tuple(shape), begin, end


def _naturals(value: object) -> bool:
    # bool is an int to Python, not to the format.
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _refuse(path: Path, what: str) -> NoReturn:
    raise ForbiddenFileError(
        f"{path.name} is not a well-formed safetensors file: {what}; take the file from its publisher again, or "
        "another revision",
        field="spec.backbone.file",
    )
