"""Statements on declared models."""

from __future__ import annotations

import secrets
from dataclasses import asdict, fields, replace

from sqlalchemy import Connection, Row, delete, insert, select, update

from everlearn.errors import ConflictError, NotFoundError
from everlearn_server.store import client_sums
from everlearn_server.store.rows import ModelRow
from everlearn_server.store.schema import memory, model, moment, stream

MAC_BYTES = 32
COLUMNS = [model.c[field.name] for field in fields(ModelRow)]


def put(connection: Connection, row: ModelRow, expected_etag: str | None, *, learned_goes_on: bool = False) -> ModelRow:
    """Creates (`expected_etag` None: there must be none) or replaces a model; a higher lineage drops the old memory.

    `learned_goes_on`: the caller writes another in its place that knows the same samples; what it has of each client is
    not proved any longer.

    Raises ConflictError if the caller's view is stale.
    """
    current = find(connection, row.name)
    if (current and current.etag) != expected_etag:
        raise ConflictError(f"model {row.name!r} {_difference(current, expected_etag)}; read it again", field="etag")
    stored = replace(row, etag=secrets.token_hex(8))
    if current is None:
        connection.execute(insert(model).values(**asdict(stored), next_version=1))
        return stored
    if row.uid != current.uid or row.lineage < current.lineage:
        raise ConflictError(f"model {row.name!r} keeps its uid, and its lineage never goes down; read it again")
    connection.execute(update(model).where(model.c.name == row.name).values(**asdict(stored)))
    if row.lineage > current.lineage:
        connection.execute(delete(memory).where(memory.c.model == row.name))
        client_sums.remove(connection, row.name)  # the caller collects their blobs
        connection.execute(delete(moment).where(moment.c.model == row.name))
        # Watermarks go on; what was learned of a client is nothing, or of unknown size in sums that were moved.
        nothing = {"sample_count": 0, "contributes_since": None, "learned_mac": bytes(MAC_BYTES)}
        left = {"learned_mac": None} if learned_goes_on else nothing
        connection.execute(update(stream).where(stream.c.model == row.name).values(**left))
    return stored


def find(connection: Connection, name: str) -> ModelRow | None:
    """The model, or None."""
    row = connection.execute(select(*COLUMNS).where(model.c.name == name)).one_or_none()
    return None if row is None else _model(row)


def get(connection: Connection, name: str) -> ModelRow:
    """The model. Raises NotFoundError."""
    row = find(connection, name)
    if row is None:
        raise NotFoundError(f"there is no model {name!r}", field="name")
    return row


def every(connection: Connection) -> tuple[ModelRow, ...]:
    """All models by name."""
    return tuple(_model(row) for row in connection.execute(select(*COLUMNS).order_by(model.c.name)))


def remove(connection: Connection, name: str) -> None:
    """Deletes the model and, through foreign keys, every row that hangs on it. Raises NotFoundError."""
    get(connection, name)
    connection.execute(delete(model).where(model.c.name == name))


def reserve_versions(connection: Connection, name: str, count: int) -> int:
    """Takes `count` version numbers for good and returns the first. Raises NotFoundError."""
    get(connection, name)
    first = connection.scalars(select(model.c.next_version).where(model.c.name == name)).one()
    connection.execute(update(model).where(model.c.name == name).values(next_version=first + count))
    return first


def _difference(current: ModelRow | None, expected_etag: str | None) -> str:
    if current is None:
        return "does not exist"
    return "exists already" if expected_etag is None else "was changed by someone else"


def _model(row: Row[*tuple[object, ...]]) -> ModelRow:
    return ModelRow(**row._mapping)
