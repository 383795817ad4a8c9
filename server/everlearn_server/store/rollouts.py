"""Statements on rollouts: the state of each model's, and the aliases that move with it."""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import Connection, select
from sqlalchemy.dialects.sqlite import insert as upsert

from everlearn_server.store import models, versions
from everlearn_server.store.schema import rollout


def move(connection: Connection, model: str, state_json: str, aliases: Mapping[str, int | None], reason: str) -> None:
    """Writes the state, and points aliases (None: at nothing any more). Raises NotFoundError (no such model, or an
    alias of no version)."""
    models.get(connection, model)
    fresh = upsert(rollout).values(model=model, state_json=state_json)
    connection.execute(fresh.on_conflict_do_update(index_elements=["model"], set_={"state_json": state_json}))
    for alias, number in aliases.items():
        if number is None:
            versions.unpoint(connection, model, alias, reason)
        else:
            versions.point(connection, model, alias, number, reason)


def find(connection: Connection, model: str) -> str | None:
    """The state as it was written; None for none."""
    return connection.scalars(select(rollout.c.state_json).where(rollout.c.model == model)).one_or_none()
