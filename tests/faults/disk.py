"""A disk that fails as the test says: power cuts, the n-th call, at random, full; lossy_files.py mounted."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.faults.not_here import NotHereError

ROOT = Path(__file__).parents[2]


def why_not() -> str:
    """Why such a disk cannot be had here; empty where it can."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "no access to /dev/fuse"
    if shutil.which("fusermount3") is None:
        return "fusermount3 is not installed (Debian: fuse3)"
    try:
        import mfusepy  # noqa: F401
    except (ImportError, OSError) as error:  # the library itself is loaded by its import
        return f"mfusepy cannot be loaded: {error}"
    return ""


@dataclass(frozen=True, kw_only=True)
class Told:
    """What the disk says after each order."""

    calls: int
    """That change something, since the plan was made."""
    failed: int
    counts: dict[str, int]
    """By kind, since the disk was made."""
    used: int
    """Bytes."""


class Disk:
    """A folder on a disk of its own. with Disk(tmp_path / "disk") as disk: ... disk.folder ... disk.cut()"""

    def __init__(self, folder: Path) -> None:
        """Raises NotHereError."""
        if reason := why_not():
            raise NotHereError(reason)
        self.folder = folder
        folder.mkdir()
        # A pipe that is closed ends it, however the test ends.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.lossy_files", str(folder)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        until_s = time.monotonic() + 120
        while not os.path.ismount(self.folder):
            assert self._process.poll() is None, f"the file system ended with {self._process.returncode}"
            assert time.monotonic() < until_s, "the file system was not mounted"
            time.sleep(0.01)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        subprocess.run(["fusermount3", "-u", "-z", str(self.folder)], check=False)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(10)
        self._process.stdout.close()

    def plan(self, **plan: object) -> Told:
        """See lossy_files.Plan; none of it for a disk that works."""
        return self._tell("plan", **plan)

    def cut(self, *, survives: float = 0.0, seed: int = 0) -> Told:
        """The power fails and comes back, for a server that is dead; `survives`: share of what was not synced."""
        return self._tell("cut", survives=survives, seed=seed)

    def settle(self) -> Told:
        """All that is there is synced: what a test laid out itself."""
        return self._tell("settle")

    def told(self) -> Told:
        """As it stands."""
        return self._tell("tell")

    def _tell(self, what: str, **values: object) -> Told:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"do": what, **values}) + "\n")
        self._process.stdin.flush()
        return Told(**json.loads(self._process.stdout.readline()))
