"""One data folder: `everlearn.sqlite`, `blobs/`, `lock`. The rest of the server sees only this and `rows`."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from sqlalchemy import Connection, insert, select, text

from everlearn.errors import DataLossError, UnavailableError
from everlearn_server.store import migrate, references, schema
from everlearn_server.store.blobs import Blobs, make_folder
from everlearn_server.store.catalog import Catalog
from everlearn_server.store.database import Database
from everlearn_server.store.ledger import Ledger
from everlearn_server.store.lock import FolderLock

EXIT_STATUS = 75
"""EX_TEMPFAIL: a supervisor starts the server again, and it goes on from the last commit."""


def exit_at_once(error: BaseException) -> None:
    """The default for a storage error: no clean-up, because what is in RAM may be ahead of the disk."""
    os._exit(EXIT_STATUS)


def pass_by(point: str) -> None:
    """The failpoint of production: does nothing."""


class Store:
    """The durable half of the server: `catalog`, `ledger`, `blobs`, and the `timeline` of its acknowledgements."""

    catalog: Catalog
    ledger: Ledger
    blobs: Blobs
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
    ) -> Self:
        """Opens or makes a data folder: locks it, migrates it, removes what a crash left over.

        `on_fatal` is called on the store's thread with the first storage error and should not return. `failpoint` is
        called after each step of the commit protocol (`blob_written`, `blob_renamed`, `begun`, `before_commit`,
        `committed`). `check` reads the whole database first (SQLite's quick_check). `restored` begins a new timeline:
        for the first start on a backup.

        Raises UnavailableError (in use by another server, or not accessible), DataLossError (not an intact database),
        PreconditionError with reason NEWER_DATABASE.
        """
        try:
            make_folder(folder)
            lock = FolderLock(folder)
        except OSError as error:
            raise UnavailableError(f"cannot use the data folder {folder}: {error.strerror}") from error
        try:
            return cls(folder, lock, on_fatal=on_fatal, failpoint=failpoint, check=check, restored=restored)
        except BaseException:
            lock.release()
            raise

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
        self._lock = lock
        self._closed = False
        self._database = Database(folder, on_fatal=on_fatal)
        try:
            self.timeline = self._database.call(self._prepare, folder, check=check, restored=restored)
            self.blobs = Blobs(folder / "blobs", die=self._database.die, failpoint=failpoint)
            self._database.call(self._sweep)
        except BaseException:
            self._database.close()
            raise
        self.catalog = Catalog(self._database, self.blobs)
        self.ledger = Ledger(self._database, self.blobs, timeline=self.timeline, failpoint=failpoint)

    def close(self) -> None:
        """Waits for what is queued, empties the write-ahead log and unlocks the folder. Blocks; harmless twice."""
        if self._closed:
            return
        self._closed = True
        self.blobs.close()
        self._database.close()
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
            migrate.upgrade(connection, folder=folder)
            return _timeline(connection, restored=restored)

    def _sweep(self) -> None:
        with self._database.snapshot() as connection:
            known = references.referenced(connection)
        self.blobs.sweep(known)


def _timeline(connection: Connection, *, restored: bool) -> str:
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
