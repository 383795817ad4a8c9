"""Statements on what a model leaves behind: operations, exports, and the trunks that models share."""

from __future__ import annotations

from dataclasses import asdict, fields

from sqlalchemy import Connection, RowMapping, delete, insert, select, update
from sqlalchemy.dialects.sqlite import insert as upsert

from everlearn.errors import NotFoundError, PreconditionError
from everlearn_server.store import models
from everlearn_server.store.history import prune
from everlearn_server.store.rows import ExportFile, ExportRow, OperationRow, TrunkRow
from everlearn_server.store.schema import export, export_file, model, operation, trunk, version

OPERATION = [operation.c[field.name] for field in fields(OperationRow)]
FILE = [export_file.c[field.name] for field in fields(ExportFile)]
OPERATIONS_KEPT = 1_000
"""Finished ones, per model."""


def put_operation(connection: Connection, row: OperationRow) -> None:
    """Creates or updates an operation by name. Raises NotFoundError if its model is gone."""
    models.get(connection, row.model)
    values = asdict(row)
    if connection.execute(update(operation).where(operation.c.name == row.name).values(**values)).rowcount == 0:
        connection.execute(insert(operation).values(**values))
    if row.done:
        finished = (operation.c.model == row.model) & operation.c.done
        prune(connection, operation.c.id, finished, keep=OPERATIONS_KEPT)


def get_operation(connection: Connection, name: str) -> OperationRow:
    """Raises NotFoundError."""
    row = connection.execute(select(*OPERATION).where(operation.c.name == name)).one_or_none()
    if row is None:
        raise NotFoundError(f"there is no operation {name!r}", field="name")
    return OperationRow(**row._mapping)


def operations(connection: Connection, owner: str | None, done: bool | None) -> tuple[OperationRow, ...]:
    """Oldest first; None does not filter."""
    chosen = select(*OPERATION).order_by(operation.c.id)
    if owner is not None:
        chosen = chosen.where(operation.c.model == owner)
    if done is not None:
        chosen = chosen.where(operation.c.done == done)
    return tuple(OperationRow(**row._mapping) for row in connection.execute(chosen))


def put_export(connection: Connection, row: ExportRow) -> set[str]:
    """Creates or replaces the export of a version; returns the blobs it named before. Raises NotFoundError."""
    owner = version.c.model == row.model, version.c.number == row.version_number
    if connection.scalars(select(version.c.number).where(*owner)).one_or_none() is None:
        raise NotFoundError(f"model {row.model!r} has no version {row.version_number}", field="version")
    key = {"model": row.model, "version_number": row.version_number}
    before = remove_export(connection, row.model, row.version_number)
    connection.execute(
        insert(export).values(parity=row.parity, probes=row.probes, create_time_s=row.create_time_s, **key)
    )
    for position, file in enumerate(row.files):
        connection.execute(insert(export_file).values(position=position, **asdict(file), **key))
    return before


def get_export(connection: Connection, owner: str, number: int) -> ExportRow:
    """Raises NotFoundError."""
    chosen = select(export).where(export.c.model == owner, export.c.version_number == number)
    row = connection.execute(chosen).one_or_none()
    if row is None:
        raise NotFoundError(f"model {owner!r} has no export of version {number}", field="version")
    return _export(connection, row._mapping)


def exports(connection: Connection, owner: str) -> tuple[ExportRow, ...]:
    """All exports of a model by version."""
    rows = connection.execute(select(export).where(export.c.model == owner).order_by(export.c.version_number)).all()
    return tuple(_export(connection, row._mapping) for row in rows)


def remove_export(connection: Connection, owner: str, number: int) -> set[str]:
    """Deletes an export and returns the blobs it named."""
    files = export_file.c.model == owner, export_file.c.version_number == number
    digests = set(connection.scalars(select(export_file.c.sha256).where(*files)))
    connection.execute(delete(export).where(export.c.model == owner, export.c.version_number == number))
    return digests


def put_trunk(connection: Connection, row: TrunkRow) -> set[str]:
    """Creates or replaces a trunk by key; returns the blob it named before."""
    before = find_trunk(connection, row.key)
    values = asdict(row)
    connection.execute(upsert(trunk).values(values).on_conflict_do_update(index_elements=["key"], set_=values))
    return set() if before is None else {before.digest}


def find_trunk(connection: Connection, key: str) -> TrunkRow | None:
    """The trunk built from this, or None."""
    row = connection.execute(select(trunk).where(trunk.c.key == key)).one_or_none()
    return None if row is None else TrunkRow(**row._mapping)


def trunk_of_digest(connection: Connection, digest: str) -> TrunkRow:
    """A trunk with these ONNX bytes. Raises NotFoundError."""
    row = connection.execute(select(trunk).where(trunk.c.digest == digest).order_by(trunk.c.key).limit(1)).one_or_none()
    if row is None:
        raise NotFoundError(f"there is no trunk with digest {digest}", field="digest")
    return TrunkRow(**row._mapping)


def trunks(connection: Connection) -> tuple[TrunkRow, ...]:
    """All trunks by key."""
    return tuple(TrunkRow(**row._mapping) for row in connection.execute(select(trunk).order_by(trunk.c.key)))


def remove_trunk(connection: Connection, key: str) -> set[str]:
    """Deletes a trunk that nothing uses and returns its blob. Raises NotFoundError, PreconditionError (in use)."""
    row = find_trunk(connection, key)
    if row is None:
        raise NotFoundError(f"there is no trunk {key!r}", field="key")
    by_models = connection.scalars(select(model.c.name).where(model.c.trunk_digest == row.digest)).all()
    by_versions = connection.scalars(select(version.c.model).where(version.c.trunk_digest == row.digest)).all()
    users = sorted({*by_models, *by_versions})
    if users:
        raise PreconditionError(f"trunk {key!r} is in use by {', '.join(users)}; delete those first", reason="IN_USE")
    connection.execute(delete(trunk).where(trunk.c.key == key))
    return {row.digest}


def _export(connection: Connection, row: RowMapping) -> ExportRow:
    chosen = export_file.c.model == row["model"], export_file.c.version_number == row["version_number"]
    files = connection.execute(select(*FILE).where(*chosen).order_by(export_file.c.position))
    return ExportRow(files=tuple(ExportFile(**file._mapping) for file in files), **row)
