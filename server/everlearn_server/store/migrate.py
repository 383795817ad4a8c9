"""Brings a database to this release's revision, in one transaction, and refuses one that a newer release wrote.

There is no way back but a backup, so nothing migrates by itself: a folder of an older revision is refused with the
command that makes a backup and migrates.
"""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from everlearn.errors import NotFoundError, PreconditionError
from everlearn_server.store.database import NAME, Database
from everlearn_server.store.lock import FolderLock

SCRIPTS = Path(__file__).parent / "migrations"
OLDER, NEWER = "OLDER_DATABASE", "NEWER_DATABASE"
"""Reasons of refusals."""


def head() -> str:
    """The revision that this release reads and writes."""
    found = ScriptDirectory(str(SCRIPTS)).get_current_head()
    assert found is not None, "there are migrations"
    return found


def revision_of(connection: Connection) -> str | None:
    """The revision of a database; None for one without any table of ours."""
    return MigrationContext.configure(connection).get_current_revision()


def check(connection: Connection, *, folder: Path) -> bool:
    """Whether the folder is of this release's revision; false for one that is older, or empty.

    Raises PreconditionError with reason NEWER_DATABASE if its revision is unknown here.
    """
    script = ScriptDirectory(str(SCRIPTS))
    found = revision_of(connection)
    known = [revision.revision for revision in script.walk_revisions()]
    if found is not None and found not in known:
        raise PreconditionError(
            f"the data folder {folder} was written by a newer everlearn (revision {found}, this one knows up to "
            f"{known[0]}); run that release or a newer one on it, or restore a backup made before the upgrade",
            reason=NEWER,
        )
    return found == known[0]


def prepare(connection: Connection, *, folder: Path) -> None:
    """Makes the tables of a new folder; leaves one of this revision as it is.

    Raises PreconditionError with reason OLDER_DATABASE or NEWER_DATABASE for any other.
    """
    if check(connection, folder=folder):
        return
    found = revision_of(connection)
    if found is not None:
        raise PreconditionError(
            f"the data folder {folder} was written by an older everlearn (revision {found}, this one needs {head()}); "
            f"`everlearn-server migrate --data {folder} --backup-to FOLDER` makes a backup and migrates it",
            reason=OLDER,
        )
    upgrade(connection)


def migrate(folder: Path) -> tuple[str, str]:
    """Brings the data folder of a server that does not run to this release's revision; returns both revisions.

    Raises NotFoundError (no data folder), UnavailableError (a server runs), PreconditionError (NEWER_DATABASE).
    """
    if not (folder / NAME).is_file():
        raise NotFoundError(f"there is no data folder at {folder}: it has no {NAME}", field="data")
    lock = FolderLock(folder)
    try:
        database = Database(folder, on_fatal=lambda error: None)
        try:
            return database.call(_migrate, database, folder)
        finally:
            database.close()
    finally:
        lock.release()


def _migrate(database: Database, folder: Path) -> tuple[str, str]:
    with database.transaction() as connection:
        before = revision_of(connection) or ""
        if not check(connection, folder=folder):
            upgrade(connection)
        return before, revision_of(connection) or ""


def upgrade(connection: Connection, *, to: str = "head") -> None:
    """Runs the missing revisions inside the caller's transaction."""
    config = Config()
    config.set_main_option("script_location", str(SCRIPTS).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, to)
