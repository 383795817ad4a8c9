"""Makes a data folder of a backup, and says so to every client: acknowledgements given since the backup are void."""

from __future__ import annotations

import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path

from everlearn.errors import DataLossError, InvalidError, UnavailableError
from everlearn_server.store import migrate, versions
from everlearn_server.store.blobs import make_folder, sync_folder
from everlearn_server.store.database import Database
from everlearn_server.store.manifest import Manifest, Progress, copy_file, sync_tree
from everlearn_server.store.store import begin_timeline


@dataclass(frozen=True, kw_only=True)
class Restored:
    """What became of a backup."""

    manifest: Manifest
    timeline: str
    """The new one."""
    is_current: bool
    """Whether this release reads the folder as it is; otherwise it has to be migrated."""


def restore(backup: Path, folder: Path, progress: Progress = lambda size: None) -> Restored:
    """Copies a backup to the data folder `folder`, verified, on a new timeline.

    The backup stays as it is, and can be restored again. `folder` has nothing in it until all of it is there.

    Raises NotFoundError (no backup), DataLossError (damaged), InvalidError (`folder` is not empty), PreconditionError
    (of a newer release), UnavailableError (no room, not writable).
    """
    manifest = Manifest.read(backup)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise InvalidError(
            f"{folder} is not empty; restore into a folder that is, or that is not there: move this one away first",
            field="data",
        )
    part = folder.with_name(f".{folder.name}.part-{secrets.token_hex(4)}")
    try:
        make_folder(part)
        _copy(manifest, backup, part, progress)
        timeline, is_current = _begin(part)
        sync_tree(part)
        part.rename(folder)
        sync_folder(folder.parent)
    except OSError as error:
        raise UnavailableError(f"cannot restore to {folder}: {error.strerror}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return Restored(manifest=manifest, timeline=timeline, is_current=is_current)


def _copy(manifest: Manifest, backup: Path, part: Path, progress: Progress) -> None:
    for file in manifest.files:
        try:
            copied = copy_file(backup / file.path, part, file.path, progress)
        except FileNotFoundError:
            raise _damaged(backup, f"{file.path} is missing") from None
        if (copied.size, copied.sha256) != (file.size, file.sha256):
            raise _damaged(backup, f"{file.path} has other bytes than its digest says")


def _damaged(backup: Path, what: str) -> DataLossError:
    return DataLossError(f"the backup {backup} is damaged: {what}; nothing was restored, take another backup")


def _begin(part: Path) -> tuple[str, bool]:
    database = Database(part, on_fatal=lambda error: None)
    try:
        return database.call(_begin_timeline, database, part)
    finally:
        database.close()


def _begin_timeline(database: Database, part: Path) -> tuple[str, bool]:
    with database.transaction() as connection:
        is_current = migrate.check(connection, folder=part)
        versions.move_all(connection)
        return begin_timeline(connection, restored=True), is_current
