"""Digests that hubs pin files by: sha256 (LFS files, specs), and the git blob's sha1 (small files of a repository)."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path

HEX40 = re.compile(r"[0-9a-f]{40}")
HEX64 = re.compile(r"[0-9a-f]{64}")
CHUNK_BYTES = 2**20


class Digests:
    """sha256 and git sha1 of a file of known size, in one pass.

    Git hashes `blob SIZE NUL content` (git-scm.com, "Git Internals - Git Objects").

    >>> digests = Digests(6)
    >>> digests.update(b"hello" + bytes([10]))
    >>> digests.git_sha1
    'ce013625030ba8dba906f756967f9e9ca394464a'
    """

    def __init__(self, size_bytes: int) -> None:
        self._sha256 = hashlib.sha256()
        # Not for secrecy: git names small files by it, and nothing stronger is on offer for them.
        self._git = hashlib.sha1(b"blob %d\0" % size_bytes, usedforsecurity=False)

    def update(self, chunk: bytes) -> None:
        """Adds the next bytes."""
        self._sha256.update(chunk)
        self._git.update(chunk)

    @property
    def sha256(self) -> str:
        """Lower-case hex."""
        return self._sha256.hexdigest()

    @property
    def git_sha1(self) -> str:
        """Lower-case hex."""
        return self._git.hexdigest()


def digests_of(path: Path, report: Callable[[int], None] = lambda _: None) -> Digests:
    """Digests of a file, telling `report` the bytes read so far."""
    digests = Digests(path.stat().st_size)
    done = 0
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK_BYTES):
            digests.update(chunk)
            done += len(chunk)
            report(done)
    return digests
