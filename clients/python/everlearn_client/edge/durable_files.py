"""Files of a device that loses power whenever it likes: whole or not there, private, and small records kept twice."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def private(path: str, flags: int) -> int:
    """Opens a file that only its owner reads: samples are in it."""
    return os.open(path, flags, 0o600)


def sync_folder(folder: Path) -> None:
    """Makes new names and removals durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def replace_file(path: Path, data: bytes) -> None:
    """The whole of it or what was there before, through a power cut at any moment. Raises OSError."""
    fresh = path.with_name(f"{path.name}.new")
    with open(fresh, "wb", opener=private) as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
    sync_folder(path.parent)


def write_twice(folder: Path, name: str, record: Mapping[str, Any]) -> None:
    """A record with its `generation`, which rises with each writing, in `{name}.0` and `{name}.1`; durable on return.

    Each is a CRC-32 in hex, a line break, JSON. One may rot or be torn. Raises OSError.
    """
    body = json.dumps(record, sort_keys=True).encode()
    for path in _both(folder, name):
        replace_file(path, b"%08x\n" % zlib.crc32(body) + body)


def read_twice(folder: Path, name: str) -> tuple[dict[str, Any] | None, bool]:
    """The newest whole record, and whether there were any files of one. Raises OSError."""
    found: list[dict[str, Any]] = []
    present = [path for path in _both(folder, name) if path.exists()]
    for path in present:
        checksum, _, body = path.read_bytes().partition(b"\n")
        if checksum == b"%08x" % zlib.crc32(body):
            found.append(json.loads(body))
    return max(found, key=lambda record: int(record["generation"]), default=None), bool(present)


def _both(folder: Path, name: str) -> tuple[Path, Path]:
    return folder / f"{name}.0", folder / f"{name}.1"
