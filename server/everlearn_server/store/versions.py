"""Statements on versions, the aliases that point to them, and the log of promotions."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import asdict, fields

from sqlalchemy import ColumnElement, Connection, Row, delete, func, insert, inspect, select, union, update

from everlearn.errors import NotFoundError
from everlearn_server.store.history import prune
from everlearn_server.store.payload import Payload
from everlearn_server.store.rows import AliasRow, PromotionRow, VersionRow, VersionSummary
from everlearn_server.store.schema import alias, export, model, promotion, version

SUMMARY = [version.c[field.name] for field in fields(VersionSummary)]
PROMOTIONS_KEPT = 10_000
"""Per model. An alias may move with every commit."""


class UnreservedVersionError(Exception):
    """A version's number was never reserved: a bug that could give one number to two versions."""


def add(connection: Connection, row: VersionRow, head: Payload) -> None:
    """Inserts a version. Raises NotFoundError (no such model), UnreservedVersionError."""
    limit = connection.scalars(select(model.c.next_version).where(model.c.name == row.model)).one_or_none()
    if limit is None:
        raise NotFoundError(f"there is no model {row.model!r}", field="name")
    if not 0 < row.number < limit:
        raise UnreservedVersionError(f"version {row.number} of {row.model!r} is not reserved; next is {limit}")
    values = asdict(row) | {"head": head.inline, "head_digest": head.digest}
    connection.execute(insert(version).values(values))


def listed(connection: Connection, name: str) -> tuple[VersionSummary, ...]:
    """All versions, oldest first."""
    rows = connection.execute(select(*SUMMARY).where(version.c.model == name).order_by(version.c.number))
    return tuple(_summary(row) for row in rows)


def get(connection: Connection, name: str, number: int) -> tuple[VersionSummary, str, bytes | None]:
    """A version, its head's digest, and the head if it is inline. Raises NotFoundError."""
    chosen = _is(name, number)
    row = connection.execute(select(*SUMMARY).where(*chosen)).one_or_none()
    if row is None:
        raise NotFoundError(f"model {name!r} has no version {number}", field="version")
    head = connection.execute(select(version.c.head_digest, version.c.head).where(*chosen)).one()
    return _summary(row), head[0], head[1]


def prunable(connection: Connection, name: str, keep: int) -> list[int]:
    """Numbers of versions that are neither among the newest `keep`, nor aliased, nor exported."""
    newest = (
        select(version.c.number).where(version.c.model == name).order_by(version.c.number.desc()).limit(keep).subquery()
    )
    needed = union(
        select(newest.c.number),
        select(alias.c.number).where(alias.c.model == name),
        select(export.c.version_number).where(export.c.model == name),
    )
    old = select(version.c.number).where(version.c.model == name, version.c.number.not_in(needed))
    return sorted(connection.scalars(old))


def remove(connection: Connection, name: str, numbers: Collection[int]) -> None:
    """Deletes versions; an alias on one of them is a violated constraint."""
    connection.execute(delete(version).where(version.c.model == name, version.c.number.in_(numbers)))


def aliases(connection: Connection, name: str) -> tuple[AliasRow, ...]:
    """All aliases of a model by name."""
    rows = connection.execute(select(alias).where(alias.c.model == name).order_by(alias.c.alias))
    return tuple(AliasRow(**row._mapping) for row in rows)


def point(connection: Connection, name: str, alias_name: str, number: int, reason: str) -> None:
    """Moves an alias and logs it, unless it points there already. Raises NotFoundError (no such version)."""
    if connection.scalars(select(version.c.number).where(*_is(name, number))).one_or_none() is None:
        raise NotFoundError(f"model {name!r} has no version {number}", field="version")
    chosen = alias.c.model == name, alias.c.alias == alias_name
    previous = connection.scalars(select(alias.c.number).where(*chosen)).one_or_none()
    if previous == number:
        return
    moved = next_move(connection.scalars(select(func.max(alias.c.moved)).where(alias.c.model == name)).one() or 0)
    if previous is None:
        connection.execute(insert(alias).values(model=name, alias=alias_name, number=number, moved=moved))
    else:
        connection.execute(update(alias).where(*chosen).values(number=number, moved=moved))
    _log(connection, name, alias_name, number, previous, reason)


def unpoint(connection: Connection, name: str, alias_name: str, reason: str) -> None:
    """Removes an alias, and logs at which version it pointed to the end; nothing where there is none."""
    gone = delete(alias).where(alias.c.model == name, alias.c.alias == alias_name).returning(alias.c.number)
    number = connection.scalars(gone).one_or_none()
    if number is not None:
        _log(connection, name, alias_name, number, number, reason)


def _log(connection: Connection, name: str, alias_name: str, number: int, previous: int | None, reason: str) -> None:
    connection.execute(
        insert(promotion).values(
            model=name, alias=alias_name, number=number, previous=previous, reason=reason, create_time_s=time.time()
        )
    )
    prune(connection, promotion.c.id, promotion.c.model == name, keep=PROMOTIONS_KEPT)


def next_move(last: int) -> int:
    """The number of a move: milliseconds since the epoch, so that it is beyond those that a restored database has
    forgotten; and more than the last one, whatever the clock says."""
    return max(last + 1, int(time.time() * 1000))


def move_all(connection: Connection) -> None:
    """Every alias is moved to where it is: after a restore its last move is newer than what devices have seen of the
    time that was lost; a canary's is not before that of `stable`. A database of before moves were numbered gets its
    numbers where it is migrated."""
    if "moved" in {column["name"] for column in inspect(connection).get_columns(alias.name)}:
        rows = select(alias.c.model, alias.c.alias, alias.c.moved).order_by(alias.c.alias.desc())
        for row in connection.execute(rows).all():
            chosen = alias.c.model == row.model, alias.c.alias == row.alias
            connection.execute(update(alias).where(*chosen).values(moved=next_move(row.moved)))


def promotions(connection: Connection, name: str, limit: int) -> tuple[PromotionRow, ...]:
    """The last `limit` moves of a model's aliases, oldest first."""
    last = select(promotion).where(promotion.c.model == name).order_by(promotion.c.id.desc()).limit(limit)
    return tuple(PromotionRow(**row._mapping) for row in reversed(connection.execute(last).all()))


def _is(name: str, number: int) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    return version.c.model == name, version.c.number == number


def _summary(row: Row[*tuple[object, ...]]) -> VersionSummary:
    return VersionSummary(**row._mapping)
