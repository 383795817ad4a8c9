"""A statement on what of a model lies on disk, in bytes: whoever asks how much is kept of people is told all of it."""

from __future__ import annotations

from typing import Final

from sqlalchemy import Connection, func, select

from everlearn_server.store.schema import client_sums, memory, moment

_TABLES: Final = {"memory": memory, "earlier": moment, "clients": client_sums}


def of_what_is_learned(connection: Connection, model: str) -> dict[str, int]:
    """The memory, earlier moments of it, and each client's own sums; 0 where there are none."""
    sizes = [
        select(func.coalesce(func.sum(table.c.size), 0)).where(table.c.model == model).scalar_subquery().label(kind)
        for kind, table in _TABLES.items()
    ]
    return dict(connection.execute(select(*sizes)).one()._mapping)
