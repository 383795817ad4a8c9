"""Statements on who downloaded which version last: an erasure's receipt names those whose copy contains what went."""

from __future__ import annotations

import time
from dataclasses import fields

from sqlalchemy import ColumnElement, Connection, Row, delete, or_, select
from sqlalchemy.dialects.sqlite import insert as upsert

from everlearn.errors import NotFoundError
from everlearn_server.store.rows import DownloadRow
from everlearn_server.store.schema import download, version

COLUMNS = [download.c[field.name] for field in fields(DownloadRow)]


def note(connection: Connection, model: str, client: str, number: int) -> None:
    """A version leaves to a client, empty where it gave no name. Raises NotFoundError where it was withdrawn."""
    of_version = version.c.model == model, version.c.number == number
    found = connection.execute(select(version.c.commit_id).where(*of_version)).one_or_none()
    if found is None:
        raise NotFoundError(f"model {model!r} has no version {number} any more", field="name")
    # The commit with it: the version's row may be gone when an erasure asks what the copy contains.
    taken = {"version_number": number, "commit_id": found.commit_id, "update_time_s": time.time()}
    fresh = upsert(download).values(model=model, client=client, **taken)
    connection.execute(fresh.on_conflict_do_update(index_elements=["model", "client"], set_=taken))


def listed(connection: Connection, model: str) -> tuple[DownloadRow, ...]:
    """By client; who gave no name comes first."""
    rows = connection.execute(select(*COLUMNS).where(download.c.model == model).order_by(download.c.client))
    return tuple(map(_download, rows))


def knowing(connection: Connection, model: str, since_commit: int | None) -> tuple[DownloadRow, ...]:
    """Those whose copy may know what was first in a commit; None: since ever."""
    chosen: list[ColumnElement[bool]] = [download.c.model == model]
    if since_commit is not None:
        chosen.append(or_(download.c.commit_id == 0, download.c.commit_id >= since_commit))
    return tuple(map(_download, connection.execute(select(*COLUMNS).where(*chosen).order_by(download.c.client))))


def forget(connection: Connection, model: str, client: str) -> None:
    """Deletes the record of one client."""
    connection.execute(delete(download).where(download.c.model == model, download.c.client == client))


def _download(row: Row[*tuple[object, ...]]) -> DownloadRow:
    return DownloadRow(**row._mapping)
