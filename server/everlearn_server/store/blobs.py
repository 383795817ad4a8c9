"""Large bytes as files named by their sha256: `blobs/sha256/ab/<digest>`.

A file is complete once it has its name: temp file in the same folder, write, fsync, rename, fsync of the folder. Only
digests become paths, never a name that somebody chose. A blob lives as long as a row names it (`references.py`), plus
the time between its `put` and that row; what is left over by a crash goes at the next start.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import logging
import os
import re
import secrets
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NoReturn, ParamSpec, TypeVar

from everlearn.errors import DataLossError, InvalidError, NotFoundError, UnavailableError

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

DIGEST = re.compile(r"[0-9a-f]{64}")
TEMPORARY = ".part-"


class SyncError(OSError):
    """An fsync failed: the page cache may have dropped the bytes and will not say so again."""


class Blobs:
    """The blob folder. Async methods are for the event loop; the others are for the store's own threads."""

    def __init__(
        self, folder: Path, *, die: Callable[[BaseException], NoReturn], failpoint: Callable[[str], None]
    ) -> None:
        self._root = folder / "sha256"
        self._die = die
        self._failpoint = failpoint
        # Puts that no row names yet. Guards the gap between `put` and the row against a concurrent `collect`.
        self._held: Counter[str] = Counter()
        self._lock = threading.Lock()
        # Not the store's thread: a 200 MB trunk must not hold up a commit.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="everlearn-blobs")
        make_folder(self._root)

    async def put(self, data: bytes) -> str:
        """Stores bytes and returns their digest. A row should name it soon, or `delete` give it up again.

        Raises UnavailableError if the disk is full; any other storage error is fatal.
        """
        return await self._run(self._put, data)

    async def get(self, digest: str) -> bytes:
        """The whole blob, verified. Raises InvalidError (not a digest), DataLossError (missing or not what it was)."""
        return await self._run(self.read, digest)

    async def open_range(self, digest: str, offset: int, size: int) -> bytes:
        """At most `size` bytes from `offset`, not verified: who downloads in ranges checks the digest of the whole.

        Raises InvalidError (not a digest, negative numbers, offset past the end), DataLossError (missing).
        """
        return await self._run(self._read_range, digest, offset, size)

    async def delete(self, digest: str) -> None:
        """Gives up one `put`. The caller knows that no row names the blob; other puts of equal bytes keep it."""
        await self._run(self.release, digest, unlink=True)

    def path(self, digest: str) -> Path:
        """Where the blob is, for what must open it by path. Raises InvalidError if this is not a digest."""
        if not DIGEST.fullmatch(digest):
            raise InvalidError("not a digest; it has 64 lower-case hexadecimal digits", field="digest")
        return self._root / digest[:2] / digest

    def exists(self, digest: str) -> bool:
        """Whether there is a file of that name."""
        return self.path(digest).is_file()

    def write(self, data: bytes) -> str:
        """Stores bytes durably and holds them until `release`. Raises OSError as it comes."""
        digest = hashlib.sha256(data).hexdigest()
        with self._lock:
            self._held[digest] += 1
        path = self.path(digest)
        if _is_intact(path, digest):
            # Its writer may not have come this far yet.
            sync_folder(path.parent)
        else:
            make_folder(path.parent)
            self._write_file(path, data)
        return digest

    def read(self, digest: str) -> bytes:
        """See `get`."""
        try:
            data = self.path(digest).read_bytes()
        except OSError as error:
            raise DataLossError(f"blob {digest} cannot be read: {_name(error)}") from error
        if hashlib.sha256(data).hexdigest() != digest:
            raise DataLossError(f"blob {digest} has other bytes than its name says; restore it from a backup")
        return data

    def verify(self, digest: str) -> None:
        """Reads a blob, a part at a time. Raises InvalidError (not a digest), DataLossError (missing or not what it
        was)."""
        try:
            intact = _is_intact(self.path(digest), digest)
        except OSError as error:
            raise DataLossError(f"blob {digest} cannot be read: {_name(error)}") from error
        if not intact:
            raise DataLossError(f"blob {digest} is missing, or has other bytes than its name says")

    def hold(self, digests: Iterable[str]) -> None:
        """Keeps blobs that rows name now, whatever becomes of the rows, until `release`: one call each."""
        with self._lock:
            self._held.update(digests)

    def release(self, digest: str, *, unlink: bool = False) -> None:
        """Ends the hold of one `write`: a row names the blob now, or (`unlink`) never will."""
        path = self.path(digest)
        with self._lock:
            self._held[digest] -= 1
            if self._held[digest] > 0:
                return
            del self._held[digest]
            if unlink:
                path.unlink(missing_ok=True)

    def require(self, digests: Iterable[str]) -> None:
        """Raises NotFoundError unless each blob is there: a row may not name what was never put."""
        for digest in digests:
            if not self.exists(digest):
                raise NotFoundError(f"there is no blob {digest}; put the bytes before the row that names them")

    def remove(self, digests: Iterable[str]) -> None:
        """Unlinks blobs that no row names, but those still held. Not synced: what comes back is an orphan again."""
        with self._lock:
            for digest in digests:
                if self._held[digest] <= 0:
                    self.path(digest).unlink(missing_ok=True)

    def sweep(self, referenced: Collection[str]) -> int:
        """At start: removes temp files and blobs that no row names; returns how many. Leaves foreign files alone."""
        removed = 0
        for path in self._root.glob("??/*"):
            is_blob = bool(DIGEST.fullmatch(path.name)) and path.name[:2] == path.parent.name
            if path.name.startswith(TEMPORARY) or (is_blob and path.name not in referenced):
                path.unlink()
                removed += 1
            elif not is_blob:
                logger.warning("not a blob: %s", path)
        return removed

    def close(self) -> None:
        """Waits for what runs."""
        self._thread.shutdown()

    def _put(self, data: bytes) -> str:
        try:
            return self.write(data)
        except OSError as error:
            self.release(hashlib.sha256(data).hexdigest())
            if error.errno in (errno.ENOSPC, errno.EDQUOT) and not isinstance(error, SyncError):
                raise UnavailableError(f"no room for a blob of {len(data)} bytes in {self._root}; free some") from error
            self._die(error)

    def _write_file(self, path: Path, data: bytes) -> None:
        temporary = path.with_name(TEMPORARY + secrets.token_hex(8))
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            try:
                rest = memoryview(data)
                while rest:
                    rest = rest[os.write(descriptor, rest) :]
                self._failpoint("blob_written")
                _sync(descriptor)
            finally:
                os.close(descriptor)
            temporary.rename(path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)
        self._failpoint("blob_renamed")

    def _read_range(self, digest: str, offset: int, size: int) -> bytes:
        if offset < 0 or size < 0:
            raise InvalidError(f"offset {offset} and size {size} must not be negative", field="offset")
        try:
            with self.path(digest).open("rb", buffering=0) as file:
                total = os.fstat(file.fileno()).st_size
                if offset > total:
                    raise InvalidError(f"offset {offset} is past the end; the blob has {total} bytes", field="offset")
                return os.pread(file.fileno(), size, offset)
        except OSError as error:
            raise DataLossError(f"blob {digest} cannot be read: {_name(error)}") from error

    async def _run(self, work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            future = self._thread.submit(lambda: work(*args, **kwargs))
        except RuntimeError as error:
            raise UnavailableError("the store is closed") from error
        return await asyncio.wrap_future(future)


def make_folder(folder: Path) -> None:
    """Makes a folder, its parents too, readable by this user only, so that each survives a power cut."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(mode=0o700, exist_ok=True)
    sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder durable: fsync of a file says nothing about its name."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _sync(descriptor)
    finally:
        os.close(descriptor)


def _sync(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    except OSError as error:
        raise SyncError(error.errno, "fsync failed") from error


def _is_intact(path: Path, digest: str) -> bool:
    """A rotten file under the right name must not pass for stored: it is written anew."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == digest
    except FileNotFoundError:
        return False


def _name(error: OSError) -> str:
    return errno.errorcode.get(error.errno or 0, type(error).__name__)
