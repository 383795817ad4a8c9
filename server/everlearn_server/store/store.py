"""One data folder: `everlearn.sqlite`, `blobs/`, `keys/`, `lock`. The rest of the server sees only this and `rows`."""

from __future__ import annotations

import asyncio
import os
import time
import uuid
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from sqlalchemy import Connection, insert, select, text

from everlearn.errors import DataLossError, EverlearnError, PreconditionError, UnavailableError
from everlearn_server.store import migrate, references, schema
from everlearn_server.store.blobs import Blobs, make_folder, sync_folder
from everlearn_server.store.catalog import Catalog
from everlearn_server.store.client_keys import ClientKeys
from everlearn_server.store.client_sums import ClientSumsStore
from everlearn_server.store.database import Database, Frozen
from everlearn_server.store.free_space import Room
from everlearn_server.store.keys import Keys
from everlearn_server.store.ledger import Ledger
from everlearn_server.store.lock import FolderLock
from everlearn_server.store.moments import Moments
from everlearn_server.store.payload import collect

EXIT_STATUS = 75
"""EX_TEMPFAIL: a supervisor starts the server again, and it goes on from the last commit."""


def exit_at_once(error: BaseException) -> None:
    """The default for a storage error: no clean-up, because what is in RAM may be ahead of the disk."""
    os._exit(EXIT_STATUS)


def pass_by(point: str) -> None:
    """The failpoint of production: does nothing."""


class Store:
    """What is durable of a server: `catalog`, `ledger`, `blobs`, `keys`, the `timeline` of its acknowledgements."""

    catalog: Catalog
    ledger: Ledger
    moments: Moments
    blobs: Blobs
    keys: Keys
    client_keys: ClientKeys
    client_sums: ClientSumsStore
    folder: Path
    room: Room
    timeline: str
    """32 hex digits, made with the folder; another one says that acknowledgements given before are void."""

    @classmethod
    def open(
        cls,
        folder: Path,
        *,
        on_fatal: Callable[[BaseException], None] = exit_at_once,
        failpoint: Callable[[str], None] = pass_by,
        check: bool = False,
        restored: bool = False,
        min_free_bytes: int = 0,
    ) -> Self:
        """Opens or makes a data folder: locks it, removes what a crash left over.

        `on_fatal` is called on the store's thread with the first storage error and should not return. `failpoint` is
        called after each step of the commit protocol (`blob_written`, `blob_renamed`, `begun`, `before_commit`,
        `committed`). `check` reads the whole database first (SQLite's quick_check). `restored` begins a new timeline:
        for the first start on a backup. `min_free_bytes`: what `room` asks for.

        Raises UnavailableError (in use by another server, or not accessible), DataLossError (not an intact database),
        PreconditionError with reason NEWER_DATABASE or OLDER_DATABASE.
        """
        try:
            make_folder(folder)
            lock = FolderLock(folder)
        except OSError as error:
            raise UnavailableError(f"cannot use the data folder {folder}: {error.strerror}") from error
        try:
            store = cls(folder, lock, on_fatal=on_fatal, failpoint=failpoint, check=check, restored=restored)
        except OSError as error:
            lock.release()
            raise UnavailableError(f"cannot use the data folder {folder}: {error.strerror}") from error
        except BaseException:
            lock.release()
            raise
        store.room = Room(folder, min_free_bytes)
        return store

    def __init__(
        self,
        folder: Path,
        lock: FolderLock,
        *,
        on_fatal: Callable[[BaseException], None],
        failpoint: Callable[[str], None],
        check: bool,
        restored: bool,
    ) -> None:
        self.folder = folder
        self._lock = lock
        self._closed = False
        self._is_frozen = False
        self._database = Database(folder, on_fatal=on_fatal)
        try:
            self.timeline = self._database.call(self._prepare, folder, check=check, restored=restored)
            # SQLite syncs the name of its new log, too, but goes on where that fails: after a power cut there would be
            # the log of an earlier life, which overwrites what is newer, or none.
            sync_folder(folder)
            self.blobs = Blobs(folder / "blobs", die=self._database.die, failpoint=failpoint)
            self._database.call(self._sweep)
            # What an erasure or a deletion took out, whose process died before it had emptied the log.
            self._database.call(self._database.scrub)
            self.keys = Keys.open(folder)
        except BaseException:
            self._database.close()
            raise
        self.client_keys = ClientKeys(self._database, self.keys)
        self.client_sums = ClientSumsStore(self._database, self.blobs, self.client_keys)
        self.catalog = Catalog(self._database, self.blobs)
        self.moments = Moments(self._database, self.blobs)
        self.ledger = Ledger(self._database, self.blobs, timeline=self.timeline, failpoint=failpoint)

    @asynccontextmanager
    async def frozen(self) -> AsyncIterator[tuple[Frozen, Collection[str]]]:
        """The database's file as it is at this moment, and the blobs that its rows name: both stay meanwhile, while
        commits go on. Raises PreconditionError (reason BACKUP_RUNS): one at a time."""
        if self._is_frozen:
            raise PreconditionError("a backup is being made already; wait for it", reason="BACKUP_RUNS")
        self._is_frozen = True
        try:
            freezing = asyncio.ensure_future(self._database.run(self._freeze))
            try:
                frozen, digests = await asyncio.shield(freezing)
            except asyncio.CancelledError:
                # It may have been done, or will be: what nobody thaws would never be brought into the file again.
                with suppress(EverlearnError):
                    await self._database.run(self._thaw, (await freezing)[1])
                raise
            try:
                yield frozen, digests
            finally:
                await asyncio.shield(self._database.run(self._thaw, digests))
        finally:
            self._is_frozen = False

    async def is_frozen(self, frozen: Frozen) -> bool:
        """Whether the file still is as it was then; a deleted model leaves it at once."""
        return await self._database.run(self._database.is_frozen, frozen)

    def close(self) -> None:
        """Waits for what is queued, empties the write-ahead log and unlocks the folder. Blocks; harmless twice."""
        if self._closed:
            return
        self._closed = True
        try:
            self.blobs.close()
            self._database.close()
        finally:
            self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _prepare(self, folder: Path, *, check: bool, restored: bool) -> str:
        with self._database.transaction() as connection:
            if check:
                _check(connection, folder)
            migrate.prepare(connection, folder=folder)
            return begin_timeline(connection, restored=restored)

    def _freeze(self) -> tuple[Frozen, Collection[str]]:
        frozen = self._database.freeze()
        try:
            with self._database.snapshot() as connection:
                digests = references.referenced(connection)
        except BaseException:
            self._database.thaw()
            raise
        self.blobs.hold(digests)
        return frozen, digests

    def _thaw(self, digests: Collection[str]) -> None:
        for digest in digests:
            self.blobs.release(digest)
        self._database.thaw()
        collect(self._database, self.blobs, digests)

    def _sweep(self) -> None:
        with self._database.snapshot() as connection:
            known = references.referenced(connection)
        self.blobs.sweep(known)


def begin_timeline(connection: Connection, *, restored: bool) -> str:
    """The folder's timeline; a new one for a new folder, and for one that was `restored`."""
    found = connection.scalars(select(schema.timeline.c.value)).one_or_none()
    if found is not None and not restored:
        return found
    made = uuid.uuid4().hex
    connection.execute(schema.timeline.delete())
    connection.execute(insert(schema.timeline).values(id=1, value=made, create_time_s=time.time()))
    return made


def _check(connection: Connection, folder: Path) -> None:
    findings = connection.scalars(text("PRAGMA quick_check(1)")).all()
    if findings != ["ok"]:
        raise DataLossError(f"the database in {folder} is damaged: {findings[0]}; restore a backup")
