"""Brings a database to this release's revision, in one transaction, and refuses one that a newer release wrote."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from everlearn.errors import PreconditionError

SCRIPTS = Path(__file__).parent / "migrations"


def upgrade(connection: Connection, *, folder: Path) -> None:
    """Runs the missing revisions inside the caller's transaction.

    Raises PreconditionError with reason NEWER_DATABASE if the folder's revision is unknown here.
    """
    config = Config()
    config.set_main_option("script_location", str(SCRIPTS).replace("%", "%%"))
    config.attributes["connection"] = connection
    found = MigrationContext.configure(connection).get_current_revision()
    script = ScriptDirectory.from_config(config)
    known = [revision.revision for revision in script.walk_revisions()]
    if found == script.get_current_head():
        return
    if found is not None and found not in known:
        raise PreconditionError(
            f"the data folder {folder} was written by a newer everlearn (revision {found}, this one knows up to "
            f"{known[0]}); run that release or a newer one on it, or restore a backup made before the upgrade",
            reason="NEWER_DATABASE",
        )
    command.upgrade(config, "head")
