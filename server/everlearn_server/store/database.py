"""The one SQLite connection and the one thread that owns it.

One connection, because the SQLite that Python brings (3.40) can corrupt its write-ahead log with two or more (the
WAL-reset bug, fixed in 3.51.3), and because a single writer needs no locks. `synchronous=FULL`: a COMMIT that returned
survives a power cut. `secure_delete`: deleted rows are overwritten with zeros. `locking_mode=EXCLUSIVE`: nobody else,
not even a shell, can open the file meanwhile.

Pages of 16 KiB and a log of 16 MiB suit rows of megabytes (`python -m tests.benchmarks commits` says what one costs).
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Concatenate, NoReturn, ParamSpec, TypeVar

from sqlalchemy import Connection, StaticPool, create_engine, event
from sqlalchemy.exc import DBAPIError, IntegrityError

from everlearn.errors import DataLossError, UnavailableError

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

NAME = "everlearn.sqlite"
PAGE_BYTES = 16 * 1024
LOG_PAGES = 1024
PRAGMAS: tuple[tuple[str, object, object], ...] = (
    ("page_size", PAGE_BYTES, None),
    ("locking_mode", "EXCLUSIVE", "exclusive"),
    ("journal_mode", "WAL", "wal"),
    ("synchronous", "FULL", 2),
    ("secure_delete", "ON", 1),
    ("foreign_keys", "ON", 1),
    ("trusted_schema", "OFF", 0),
    ("mmap_size", 0, 0),
    ("wal_autocheckpoint", LOG_PAGES, LOG_PAGES),
)
"""Name, value, what reading it back must give (None: an older file may differ). The order matters."""


@dataclass(frozen=True, kw_only=True)
class Frozen:
    """The database's file at one moment between two commits."""

    descriptor: int
    """To `pread` from; not to be closed."""
    size: int
    """Bytes."""
    checkpoints: int
    """Of the database so far."""


class Database:
    """Runs every statement, one caller after the other, on its own thread.

    The constructor opens the file. Raises UnavailableError (locked, unreadable) or DataLossError (not a database).
    """

    def __init__(self, folder: Path, *, on_fatal: Callable[[BaseException], None]) -> None:
        self._folder = folder
        self._on_fatal = on_fatal
        self._failure: BaseException | None = None
        self._closed = False
        self._checkpoints = 0
        self.commit_s = 0.0
        """How long the last COMMIT took: what goes to the disk goes there then."""
        self._frozen: int | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="everlearn-store")
        try:
            self._connection = self.call(_connect, folder / NAME)
        except BaseException:
            self._thread.shutdown()
            raise

    async def run(self, work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Calls `work` on the store's thread. A cancelled caller does not learn whether it ran."""
        return await asyncio.wrap_future(self._submit(lambda: work(*args, **kwargs)))

    def call(self, work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """`run` for callers without an event loop: start and stop."""
        return self._submit(lambda: work(*args, **kwargs)).result()

    async def write(self, work: Callable[Concatenate[Connection, P], T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Calls `work` with the connection inside one durable transaction."""
        return await self.run(self._write, lambda connection: work(connection, *args, **kwargs))

    async def read(self, work: Callable[Concatenate[Connection, P], T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Calls `work` with the connection."""
        return await self.run(self._read, lambda connection: work(connection, *args, **kwargs))

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """On the store's thread: BEGIN IMMEDIATE, and COMMIT unless the block raises.

        A storage error is fatal (`die`). A violated constraint is a caller's bug: rolled back and raised as it is.
        """
        self.refuse_if_failed()
        try:
            with self._connection.begin():
                yield self._connection
                began_s = time.perf_counter()
            self.commit_s = time.perf_counter() - began_s
        except IntegrityError:
            raise
        except (DBAPIError, sqlite3.Error, OSError) as error:
            self.die(error)

    @contextmanager
    def snapshot(self) -> Iterator[Connection]:
        """On the store's thread: reads. A damaged page raises DataLossError and leaves the rest usable."""
        self.refuse_if_failed()
        try:
            with self._connection.begin():
                yield self._connection
        except DBAPIError as error:
            raise DataLossError(f"the database in {self._folder} cannot be read: {error.orig}") from error

    @property
    def failed(self) -> bool:
        """Whether a storage error has ended this store's life."""
        return self._failure is not None

    def refuse_if_failed(self) -> None:
        """Raises UnavailableError after a storage error: what is in RAM may be ahead of the disk."""
        if self._failure is not None:
            raise self._refusal() from self._failure

    def die(self, error: BaseException) -> NoReturn:
        """Ends the process through `on_fatal`; never retries, because an fsync that failed once may lie afterwards.

        Raises UnavailableError where `on_fatal` returns (tests), and so does every later call.
        """
        self._failure = error
        detail = errno.errorcode.get(error.errno or 0, "") if isinstance(error, OSError) else str(error)
        logger.critical("storage failed in %s: %s %s", self._folder, type(error).__name__, detail)
        self._on_fatal(error)
        raise self._refusal() from error

    def scrub(self) -> None:
        """On the store's thread, between transactions: empties the write-ahead log, which keeps deleted pages."""
        self.refuse_if_failed()
        self._checkpoints += 1
        try:
            self._connection.connection.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)").close()
        except sqlite3.Error as error:
            self.die(error)

    def freeze(self) -> Frozen:
        """On the store's thread: brings all that is committed into the file, which then stays as it is while commits go
        into the log alone, until `thaw` or a `scrub`. Whoever reads the file asks `is_frozen` afterwards.
        """
        self.scrub()
        self._set_autocheckpoint(0)
        if self._frozen is None:
            # Kept open for good: closing any descriptor of a file drops this process's POSIX locks on it, and another
            # program could open the database from then on.
            self._frozen = os.open(self._folder / NAME, os.O_RDONLY | os.O_CLOEXEC)
        return Frozen(descriptor=self._frozen, size=os.fstat(self._frozen).st_size, checkpoints=self._checkpoints)

    def is_frozen(self, frozen: Frozen) -> bool:
        """On the store's thread: whether the file is still as it was at `freeze`."""
        return frozen.checkpoints == self._checkpoints

    def thaw(self) -> None:
        """On the store's thread: commits reach the file again, at once those that came meanwhile."""
        if self._failure is None:
            self.scrub()
            self._set_autocheckpoint(LOG_PAGES)

    def close(self) -> None:
        """Waits for queued work, empties the log and closes the file. Calling it again does nothing."""
        if self._closed:
            return
        self._closed = True
        self._thread.submit(self._close).result()
        self._thread.shutdown()

    def _close(self) -> None:
        try:
            if self._failure is None:
                self.scrub()
        finally:
            engine = self._connection.engine
            self._connection.close()
            engine.dispose()
            if self._frozen is not None:
                os.close(self._frozen)

    def _set_autocheckpoint(self, pages: int) -> None:
        self._connection.connection.cursor().execute(f"PRAGMA wal_autocheckpoint={pages}").close()

    def _refusal(self) -> UnavailableError:
        return UnavailableError(
            f"the store in {self._folder} stopped after a storage error; restart to go on from the last commit"
        )

    def _submit(self, work: Callable[[], T]) -> Future[T]:
        if self._closed:
            raise UnavailableError(f"the store in {self._folder} is closed")
        return self._thread.submit(work)

    def _write(self, work: Callable[[Connection], T]) -> T:
        with self.transaction() as connection:
            return work(connection)

    def _read(self, work: Callable[[Connection], T]) -> T:
        with self.snapshot() as connection:
            return work(connection)


def _connect(path: Path) -> Connection:
    try:
        dialled = _dial(path)
    except sqlite3.OperationalError as error:
        raise UnavailableError(
            f"cannot open the database {path}: {error}; another program may have it open, or the folder is not writable"
        ) from error
    except sqlite3.DatabaseError as error:
        raise DataLossError(f"{path} is not an intact SQLite database: {error}; restore a backup") from error
    # Parameters hold labels and learned bytes: they must not reach an error's text.
    engine = create_engine("sqlite+pysqlite://", creator=lambda: dialled, poolclass=StaticPool, hide_parameters=True)
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    return engine.connect()


def _dial(path: Path) -> sqlite3.Connection:
    path.touch(mode=0o600)
    connection = sqlite3.connect(path, isolation_level=None, timeout=0)
    try:
        for name, value, _ in PRAGMAS:
            connection.execute(f"PRAGMA {name}={value}").fetchall()
        # The exclusive lock is taken by the first transaction.
        connection.execute("BEGIN IMMEDIATE").close()
        connection.execute("COMMIT").close()
        for name, _, expected in PRAGMAS:
            found = connection.execute(f"PRAGMA {name}").fetchone()
            if expected is not None and found != (expected,):
                raise UnavailableError(f"SQLite refuses {name}={expected} for {path}: it answers {found}")
    except BaseException:
        connection.close()
        raise
    return connection
