"""The floor of free disk space, below which nothing new is taken in: what is there stays readable and is served.

A full disk fails somewhere, and a commit may be where. Stopping before leaves room for what is staged already, and the
caller a clear answer instead of a server that ends and starts over again.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from everlearn.errors import DiskFullError

_AGE_S = 0.5
"""Free space is read no more often; a second's learning is far below any floor."""
_RETRY_S = 5.0


class Room:
    """Whether the disk of a folder has room for more. `floor_bytes` 0: never looks."""

    def __init__(self, folder: Path, floor_bytes: int) -> None:
        self._folder = folder
        self._floor_bytes = floor_bytes
        self._free_bytes = 0
        self._read_s = float("-inf")

    def require(self) -> None:
        """Raises DiskFullError below the floor; callers may come back when there is space again."""
        if not self._floor_bytes:
            return
        now_s = time.monotonic()
        if now_s - self._read_s > _AGE_S:
            found = os.statvfs(self._folder)
            self._free_bytes, self._read_s = found.f_bavail * found.f_frsize, now_s
        if self._free_bytes < self._floor_bytes:
            raise DiskFullError(
                f"{self._free_bytes >> 20} MiB are free where this server keeps its data, and below "
                f"{self._floor_bytes >> 20} MiB it takes nothing in; predictions go on. Free some space, or lower "
                "min_free_bytes",
                retry_after_s=_RETRY_S,
            )
