"""What a backup is made of: every file with its size and sha256, in `manifest.json`, which is sealed itself.

A backup is a folder laid out as a data folder. The manifest is written last: a folder without one is no backup.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

from everlearn.errors import DataLossError, NotFoundError, PreconditionError
from everlearn_server.store.blobs import sync_folder

NAME: Final = "manifest.json"
FORMAT: Final = 1
CHUNK_BYTES: Final = 1 << 20
_SYNC_BYTES: Final = 32 << 20
"""Written between two syncs: what is still dirty delays the fsync of a server's commits on the same disk."""

Progress = Callable[[int], None]
"""Called with the bytes of each chunk, from any thread. What it raises ends the work."""


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """One file of a backup."""

    path: str
    """Below the backup, with `/`."""
    size: int
    """Bytes."""
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a backup says of itself."""

    everlearn: str
    """Version of the release that made it."""
    revision: str
    """Of the database."""
    timeline: str
    create_time: str
    """ISO 8601, UTC."""
    models: Mapping[str, Mapping[str, int]]
    """Model -> `samples`, and `commit`: the id of the last one."""
    files: tuple[FileEntry, ...]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    def write(self, folder: Path) -> None:
        """Durably."""
        body: dict[str, Any] = {"format": FORMAT, **asdict(self), "files": [asdict(file) for file in self.files]}
        data = json.dumps(body | {"sha256": _seal(body)}, indent=1).encode()
        descriptor = os.open(folder / NAME, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.write(descriptor, data)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        sync_folder(folder)

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Raises NotFoundError (no backup), DataLossError (damaged), PreconditionError (of a newer release)."""
        path = folder / NAME
        try:
            body = json.loads(path.read_bytes())
            seal = body.pop("sha256")
            known = body.pop("format") if isinstance(body.get("format"), int) else 0
            if known > FORMAT:
                raise PreconditionError(
                    f"{folder} is a backup of format {known}, and this everlearn knows {FORMAT}; restore it with the "
                    f"release that made it ({body.get('everlearn')}) or a newer one",
                    reason="NEWER_BACKUP",
                )
            if _seal({"format": known, **body}) != seal:
                raise ValueError("its digest is not the one it ends with")
            files = tuple(FileEntry(**file) for file in body.pop("files"))
            if not all(_is_inside(file.path) for file in files):
                raise ValueError("it names a file outside of the backup")
            return cls(files=files, **body)
        except (FileNotFoundError, NotADirectoryError):
            raise NotFoundError(
                f"{folder} is no backup: there is no {NAME}; `everlearn-server backup` makes one", field="from"
            ) from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataLossError(f"{path} is damaged ({error}); take another backup") from error

    def problems(self, folder: Path, progress: Progress = lambda size: None) -> Iterator[str]:
        """Reads every file; what is not as it was written, in words."""
        for file in self.files:
            try:
                found = digest_of(folder / file.path, progress)
            except OSError as error:
                yield f"{file.path} cannot be read: {error.strerror}"
                continue
            if (found.size, found.sha256) != (file.size, file.sha256):
                yield f"{file.path} has other bytes than were written: {found.size} of {file.size}, another sha256"


def digest_of(path: Path, progress: Progress = lambda size: None) -> FileEntry:
    """Size and sha256 of what is on the disk, not of what this machine still has of it in its RAM. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        digest, size = hashlib.sha256(), 0
        while chunk := os.pread(descriptor, CHUNK_BYTES, size):
            digest.update(chunk)
            size += len(chunk)
            progress(len(chunk))
    finally:
        os.close(descriptor)
    return FileEntry(path=path.name, size=size, sha256=digest.hexdigest())


def copy_open(descriptor: int, size: int, folder: Path, path: str, progress: Progress) -> FileEntry:
    """Copies the first `size` bytes of an open file to `folder/path`, durably. Raises OSError."""
    target = folder / path
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    digest, done, synced = hashlib.sha256(), 0, 0
    written = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        while chunk := os.pread(descriptor, min(CHUNK_BYTES, size - done), done):
            rest = memoryview(chunk)
            while rest:
                rest = rest[os.write(written, rest) :]
            digest.update(chunk)
            done += len(chunk)
            progress(len(chunk))
            if done - synced >= _SYNC_BYTES:
                os.fdatasync(written)
                synced = done
        os.fsync(written)
    finally:
        os.close(written)
    return FileEntry(path=path, size=done, sha256=digest.hexdigest())


def copy_file(source: Path, folder: Path, path: str, progress: Progress) -> FileEntry:
    """Copies a whole file to `folder/path`, durably. Raises OSError."""
    descriptor = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return copy_open(descriptor, os.fstat(descriptor).st_size, folder, path, progress)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Makes the names of all files below durable."""
    for name, _, _ in os.walk(folder):
        sync_folder(Path(name))


def _is_inside(path: str) -> bool:
    pure = PurePosixPath(path)
    return not pure.is_absolute() and ".." not in pure.parts and bool(pure.parts)


def _seal(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
