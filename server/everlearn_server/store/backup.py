"""Copies a data folder, also under a running server: the database of one moment, the blobs it names, the keys.

The database's file is frozen (commits go into the write-ahead log alone meanwhile), so that copying it holds up no
commit, however large it is; the blobs that it names at that moment are kept from being collected until they are copied.
What deletes a model empties the log at once, for good reasons: the copy then begins anew, without that model.

Written under a temporary name beside the goal, read again from the disk, renamed: a backup is whole or not there.
"""

from __future__ import annotations

import asyncio
import errno
import os
import secrets
import shutil
import sqlite3
import threading
from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import everlearn
from everlearn.errors import DataLossError, InvalidError, NotFoundError, UnavailableError
from everlearn_server.store import migrate, references
from everlearn_server.store.blobs import DIGEST, make_folder, sync_folder
from everlearn_server.store.database import NAME as DATABASE
from everlearn_server.store.database import Database, Frozen
from everlearn_server.store.lock import FolderLock
from everlearn_server.store.manifest import FileEntry, Manifest, copy_file, copy_open, sync_tree
from everlearn_server.store.store import Store

BLOBS: Final = "blobs/sha256"
KEY: Final = "keys/master"
_ATTEMPTS: Final = 5
"""Times a copy begins anew because what it copies was deleted meanwhile."""
_SPARE_BYTES: Final = 256 << 20
"""Left free on the disk, which may be the server's own: commits must not meet a full one."""


@dataclass
class Work:
    """A backup on its way: how far it is, read by anyone; stopped by anyone."""

    bytes_total: int = 0
    bytes_done: int = 0
    stage: str = "freeze"
    restarts: int = 0
    """Times it began anew."""

    def __post_init__(self) -> None:
        self._stopped = threading.Event()

    def cancel(self) -> None:
        """Ends it soon, and nothing is left of it."""
        self._stopped.set()

    def advance(self, size: int) -> None:
        """Counts a chunk. Raises UnavailableError once it was cancelled."""
        self.bytes_done += size
        if self._stopped.is_set():
            raise UnavailableError("the backup was given up, because the server stops or nobody waits; nothing is left")


@dataclass(frozen=True, kw_only=True)
class _Source:
    """What is copied."""

    folder: Path
    frozen: Frozen
    digests: Collection[str]

    @property
    def blobs(self) -> dict[str, Path]:
        """Path in the backup -> file."""
        names = (f"{digest[:2]}/{digest}" for digest in sorted(self.digests))
        return {f"{BLOBS}/{name}": self.folder / BLOBS / name for name in names}


async def back_up(store: Store, to: Path, work: Work | None = None) -> Manifest:
    """Copies what a running server has committed to the new folder `to`; commits go on meanwhile.

    Raises InvalidError (`to` is there already, or no place for a backup), DataLossError (something is
    damaged and cannot be copied), UnavailableError (no room, not writable, ever new deletions, or cancelled).
    """
    work = work or Work()
    check_goal(to, store.folder)
    for _ in range(_ATTEMPTS):
        async with store.frozen() as (frozen, digests):
            source = _Source(folder=store.folder, frozen=frozen, digests=digests)
            copying = asyncio.ensure_future(asyncio.to_thread(_copy, source, to, work))
            try:
                part, files = await asyncio.shield(copying)
            except asyncio.CancelledError:
                # The thread reads from what is frozen: it must have ended before anything is let go.
                work.cancel()
                await asyncio.wait([copying])
                if not copying.cancelled() and copying.exception() is None:
                    shutil.rmtree(copying.result()[0], ignore_errors=True)
                raise
            intact = await store.is_frozen(frozen)
        if intact:
            return await asyncio.to_thread(_finish, part, to, files, work)
        shutil.rmtree(part, ignore_errors=True)
        work.restarts += 1
    raise UnavailableError(f"models were deleted {_ATTEMPTS} times while {to} was being written; try again")


def back_up_stopped(folder: Path, to: Path, work: Work | None = None) -> Manifest:
    """Copies the data folder of a server that does not run, of whatever revision. Raises as `back_up`, and
    NotFoundError (no data folder), UnavailableError (a server runs)."""
    work = work or Work()
    if not (folder / DATABASE).is_file():
        raise NotFoundError(f"there is no data folder at {folder}: it has no {DATABASE}", field="data")
    check_goal(to, folder)
    lock = FolderLock(folder)
    try:
        database = Database(folder, on_fatal=lambda error: None)
        try:
            frozen, digests = database.call(_freeze_stopped, database, folder)
            part, files = _copy(_Source(folder=folder, frozen=frozen, digests=digests), to, work)
        finally:
            database.close()
    finally:
        lock.release()
    return _finish(part, to, files, work)


def check_goal(to: Path, folder: Path) -> None:
    """Raises InvalidError where a backup cannot go, or something is there already."""
    if not to.is_absolute():
        raise InvalidError(f"{to} is not absolute; name the backup's folder from the root", field="to")
    if to.resolve().is_relative_to(folder.resolve()):
        raise InvalidError(f"{to} is inside of the data folder {folder}; choose another place", field="to")
    if to.exists() and not (to.is_dir() and not any(to.iterdir())):
        raise InvalidError(f"{to} is there already; name a folder that is not, or is empty", field="to")


def _freeze_stopped(database: Database, folder: Path) -> tuple[Frozen, Collection[str]]:
    with database.snapshot() as connection:
        current = migrate.check(connection, folder=folder)
        # Of an older revision nobody here knows which rows name blobs.
        every = {path.name for path in (folder / BLOBS).glob("??/*") if DIGEST.fullmatch(path.name)}
        digests = references.referenced(connection) if current else every
    return database.freeze(), digests


def _copy(source: _Source, to: Path, work: Work) -> tuple[Path, list[FileEntry]]:
    """Everything into a new folder beside `to`; leaves nothing behind where it fails."""
    part = to.with_name(f".{to.name}.part-{secrets.token_hex(4)}")
    try:
        _check_room(source, to, work)
        make_folder(part)
        return part, list(_copied(source, part, work))
    except OSError as error:
        raise UnavailableError(f"cannot write the backup {to}: {error.strerror}") from error
    finally:
        if work.stage != "verify":
            shutil.rmtree(part, ignore_errors=True)


def _copied(source: _Source, part: Path, work: Work) -> list[FileEntry]:
    work.stage = "copy"
    files = [copy_open(source.frozen.descriptor, source.frozen.size, part, DATABASE, work.advance)]
    for path, blob in source.blobs.items():
        try:
            file = copy_file(blob, part, path, work.advance)
        except FileNotFoundError:
            raise _damaged(f"blob {blob.name} is missing") from None
        if file.sha256 != blob.name:
            raise _damaged(f"blob {blob.name} has other bytes than its name says")
        files.append(file)
    if (source.folder / KEY).exists():
        files.append(copy_file(source.folder / KEY, part, KEY, work.advance))
    work.stage = "verify"
    return files


def _damaged(what: str) -> DataLossError:
    return DataLossError(
        f"{what}, so that no whole backup can be made; `everlearn-server check` on the stopped folder says what needs "
        "it: delete that, or restore an earlier backup"
    )


def _check_room(source: _Source, to: Path, work: Work) -> None:
    work.bytes_done = 0
    needed = source.frozen.size + sum(path.stat().st_size for path in source.blobs.values() if path.exists())
    work.bytes_total = 2 * needed  # written, and read again
    make_folder(to.parent)
    room = os.statvfs(to.parent)
    free = room.f_bavail * room.f_frsize
    if free < needed + _SPARE_BYTES:
        raise UnavailableError(
            f"the backup needs {needed >> 20} MiB, and {to.parent} has {free >> 20} MiB free, of which "
            f"{_SPARE_BYTES >> 20} are to stay; make room or choose another disk"
        )


def _finish(part: Path, to: Path, files: list[FileEntry], work: Work) -> Manifest:
    """Reads all of it again, seals it, and gives it its name."""
    try:
        manifest = _described(part, tuple(files))
        sync_tree(part)
        for problem in manifest.problems(part, work.advance):
            raise DataLossError(f"the disk below {to} did not keep what was written: {problem}; choose another one")
        manifest.write(part)
        part.rename(to)
        sync_folder(to.parent)
    except OSError as error:
        kept = "is there already" if error.errno in (errno.ENOTEMPTY, errno.EEXIST) else error.strerror
        raise UnavailableError(f"cannot write the backup {to}: {kept}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    work.stage = "done"
    return manifest


def _described(part: Path, files: tuple[FileEntry, ...]) -> Manifest:
    """What the copied database says of itself; tables and columns that every revision has."""
    connection = sqlite3.connect(f"{(part / DATABASE).as_uri()}?immutable=1", uri=True)
    try:
        findings = connection.execute("PRAGMA quick_check(1)").fetchall()
        if findings != [("ok",)]:
            raise DataLossError(f"the database is damaged: {findings[0][0]}; restore an earlier backup")
        [(revision,)] = connection.execute("SELECT version_num FROM alembic_version").fetchall()
        [(timeline,)] = connection.execute("SELECT value FROM timeline").fetchall()
        learned = dict.fromkeys(
            (name for (name,) in connection.execute("SELECT name FROM model ORDER BY name")), (0, 0)
        )
        for name, commit, samples in connection.execute("SELECT model, commit_id, sample_count FROM memory"):
            learned[name] = (commit, samples)
    except (sqlite3.DatabaseError, ValueError) as error:
        raise DataLossError(f"the database is damaged: {error}; restore an earlier backup") from error
    finally:
        connection.close()
    return Manifest(
        everlearn=everlearn.__version__,
        revision=revision,
        timeline=timeline,
        create_time=datetime.now(UTC).isoformat(timespec="seconds"),
        models={name: {"commit": commit, "samples": samples} for name, (commit, samples) in learned.items()},
        files=files,
    )
