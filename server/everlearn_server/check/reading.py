"""Opens a data folder's database for reading alone: the folder stays byte for byte as it is."""

from __future__ import annotations

import fcntl
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Connection, StaticPool, create_engine

from everlearn.errors import NotFoundError, UnavailableError
from everlearn_server.store import lock, migrate
from everlearn_server.store.database import NAME


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """No server writes meanwhile. A backup has no lock, and needs none.

    Raises NotFoundError (no data folder), UnavailableError (a server runs, or it cannot be read).
    """
    if not (folder / NAME).is_file():
        raise NotFoundError(f"there is no data folder at {folder}: it has no {NAME}", field="data")
    try:
        descriptor = os.open(folder / lock.NAME, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        yield
        return
    except OSError as error:
        raise UnavailableError(f"cannot read {folder}: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise UnavailableError(
            f"a server runs on {folder}: stop it, or check a backup of it: `everlearn-server backup --data {folder} "
            "--to FOLDER`, then `everlearn-server check --data FOLDER`"
        ) from None
    try:
        yield
    finally:
        os.close(descriptor)


@contextmanager
def opened(folder: Path) -> Iterator[tuple[Connection, str]]:
    """The database as its last commit left it, and its revision. Reads a copy where a crash left a log beside it, or
    where an older release wrote it: the copy is then migrated.

    Raises PreconditionError (NEWER_DATABASE), sqlalchemy's and SQLite's errors for what is no database.
    """
    log = folder / f"{NAME}-wal"
    if log.exists() and log.stat().st_size:
        with _copied(folder) as copy, _connected(copy) as connection:
            yield from _as_current(connection, folder)
        return
    with _connected(folder / NAME, "?immutable=1") as connection:
        if migrate.check(connection, folder=folder):
            yield connection, migrate.head()
            return
    with _copied(folder) as copy, _connected(copy) as connection:
        yield from _as_current(connection, folder)


def _as_current(connection: Connection, folder: Path) -> Iterator[tuple[Connection, str]]:
    found = migrate.revision_of(connection) or ""
    if not migrate.check(connection, folder=folder):
        migrate.upgrade(connection)
        connection.commit()
    yield connection, found


@contextmanager
def _copied(folder: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="everlearn-check-") as scratch:
        for path in folder.glob(f"{NAME}*"):
            if path.name in (NAME, f"{NAME}-wal"):
                shutil.copyfile(path, Path(scratch) / path.name)
        yield Path(scratch) / NAME


@contextmanager
def _connected(path: Path, query: str = "") -> Iterator[Connection]:
    dialled = sqlite3.connect(f"{path.absolute().as_uri()}{query}", uri=True)
    engine = create_engine("sqlite+pysqlite://", creator=lambda: dialled, poolclass=StaticPool, hide_parameters=True)
    try:
        with engine.connect() as connection:
            yield connection
    finally:
        engine.dispose()
        dialled.close()
