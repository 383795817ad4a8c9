"""Which rows keep a blob alive. A column that names a blob and is missing here would lose bytes: a test counts them."""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import Column, Connection, Select, select

from everlearn_server.store import schema

MAX_PARAMETERS = 10_000
"""SQLite takes 32,766 in one statement; beyond this, reading all is faster anyway."""


def referenced(connection: Connection, among: Collection[str] | None = None) -> set[str]:
    """Digests of the blobs that some row names; `among` narrows the answer to those asked for."""
    if among is not None and len(among) > MAX_PARAMETERS:
        return referenced(connection) & set(among)
    found: set[str] = set()
    for statement, column in _named():
        narrowed = statement if among is None else statement.where(column.in_(among))
        found.update(digest for digest in connection.scalars(narrowed) if digest is not None)
    return found


def named_by_model(connection: Connection, name: str) -> set[str]:
    """Digests of the blobs that a model's own rows name: what may be unreferenced once it is gone."""
    found: set[str | None] = set()
    for table in (schema.version, schema.memory, schema.moment, schema.client_sums, schema.export_file):
        for statement, column in _named():
            if column.table is table:
                found.update(connection.scalars(statement.where(table.c.model == name)))
    found.update(connection.scalars(select(schema.model.c.trunk_digest).where(schema.model.c.name == name)))
    return {digest for digest in found if digest is not None}


def named_by_versions(connection: Connection, model: str, numbers: Collection[int]) -> set[str]:
    """Digests of the blobs that these versions name."""
    version = schema.version
    chosen = version.c.model == model, version.c.number.in_(numbers)
    heads = select(version.c.head_digest).where(version.c.head.is_(None), *chosen)
    trunks = select(version.c.trunk_digest).where(*chosen)
    return {*connection.scalars(heads), *connection.scalars(trunks)}


def _named() -> tuple[tuple[Select[str | None], Column[str]], ...]:
    version, memory = schema.version.c, schema.memory.c
    return (
        (select(schema.model.c.trunk_digest), schema.model.c.trunk_digest),
        (select(version.trunk_digest), version.trunk_digest),
        (select(version.head_digest).where(version.head.is_(None)), version.head_digest),
        (select(memory.digest).where(memory.content.is_(None)), memory.digest),
        (select(schema.moment.c.digest).where(schema.moment.c.content.is_(None)), schema.moment.c.digest),
        (
            select(schema.client_sums.c.digest).where(schema.client_sums.c.content.is_(None)),
            schema.client_sums.c.digest,
        ),
        (select(schema.export_file.c.sha256), schema.export_file.c.sha256),
        (select(schema.trunk.c.digest), schema.trunk.c.digest),
    )
