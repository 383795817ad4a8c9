"""Statements on earlier moments of a model that learns by steps: what an erasure goes back to.

When a commit brings a client's first contribution, what was learned until then is kept. So for each client there is a
moment before it, its own or, where it was thinned out, an earlier one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping

from sqlalchemy import ColumnElement, Connection, Row, and_, delete, insert, select

from everlearn.errors import DataLossError
from everlearn_server.store.blobs import Blobs
from everlearn_server.store.database import Database
from everlearn_server.store.payload import Payload, collect, recover
from everlearn_server.store.rows import Commit, Keeping, MemoryRow, Moment, StreamRow
from everlearn_server.store.schema import memory, moment, stream
from everlearn_server.store.thinning import surplus

logger = logging.getLogger(__name__)

Stored = Row[*tuple[int, int, str, bytes | None]]
"""Commit, samples, digest, bytes unless they are a blob."""
_STORED = moment.c.commit_id, moment.c.sample_count, moment.c.digest, moment.c.content


def to_keep(database: Database, commit: Commit, memory_of: Callable[[str], bytes | None]) -> bytes:
    """What is to be kept of what was learned by now, where a client's first contribution comes with this commit; else
    nothing. On the store's thread, before the commit's transaction."""
    if commit.keeping is None or commit.keeping.most < 1 or commit.erasing is not None:
        return b""
    with database.snapshot() as connection:
        if not begins(connection, commit.model, commit.streams):
            return b""
    try:
        data = memory_of(commit.model)
        return b"" if data is None else commit.keeping.made_of(data)
    except DataLossError as error:  # what comes is learned all the same
        logger.error("an earlier moment of %s cannot be kept: %s", commit.model, error)
        return b""


class Moments:
    """Of all models. Methods raise UnavailableError once the store has failed or is closed."""

    def __init__(self, database: Database, blobs: Blobs) -> None:
        self._database = database
        self._blobs = blobs

    def before(self, model: str, client: str) -> Moment | None:
        """What had been learned at the last commit that is kept from before a client's first contribution; None where
        there is none that is intact. Blocks; not on the event loop."""
        return self._database.call(self._before, model, client)

    async def commits(self, model: str) -> Collection[int]:
        """Of those that are kept, oldest first."""
        return await self._database.read(commits, model)

    async def thin(self, model: str, keeping: Keeping | None) -> None:
        """Keeps no more than that; None: none."""
        await self._database.run(self._thin, model, 0 if keeping is None else keeping.most)

    def _before(self, model: str, client: str) -> Moment | None:
        with self._database.snapshot() as connection:
            found = before(connection, model, client)
        for commit_id, samples, digest, inline in found:
            try:
                data = recover(self._blobs, digest, inline, what=f"the moment of commit {commit_id} of model {model!r}")
                return Moment(commit_id=commit_id, sample_count=samples, data=data)
            except DataLossError as error:
                logger.error("an earlier moment is damaged, an even earlier one is taken: %s", error)
        return None

    def _thin(self, model: str, most: int) -> None:
        with self._database.transaction() as connection:
            gone = thin(connection, model, most)
        collect(self._database, self._blobs, gone)


def begins(connection: Connection, model: str, streams: Mapping[str, StreamRow]) -> bool:
    """Whether some of these clients contribute first with the commit that brings them."""
    contributing = [client for client, row in streams.items() if row.sample_count > 0]
    chosen = stream.c.model == model, stream.c.client.in_(contributing), stream.c.contributes_since.is_(None)
    return (
        bool(contributing) and connection.execute(select(stream.c.client).where(*chosen).limit(1)).first() is not None
    )


def add(connection: Connection, model: str, row: MemoryRow, kept: Payload, most: int) -> set[str]:
    """Keeps what was learned by the commit that `row` is of, and thins. Returns blobs that may be let go of."""
    values = {
        "model": model,
        "commit_id": row.commit_id,
        "lineage": row.lineage,
        "sample_count": row.sample_count,
        "digest": kept.digest,
        "size": kept.size,
        "content": kept.inline,
    }
    # Of one commit there is one: a commit of nothing but rejections, or an erasure, may have left the memory as it was.
    connection.execute(delete(moment).where(moment.c.model == model, moment.c.commit_id == row.commit_id))
    connection.execute(insert(moment).values(values))
    return thin(connection, model, most)


def thin(connection: Connection, model: str, most: int) -> set[str]:
    """Leaves as many as may be. Returns blobs that may be let go of."""
    chosen = select(moment.c.commit_id, moment.c.sample_count).where(moment.c.model == model)
    rows = connection.execute(chosen.order_by(moment.c.commit_id)).all()
    gone = [rows[place].commit_id for place in surplus([row.sample_count for row in rows], most)]
    return _remove(connection, model, moment.c.commit_id.in_(gone))


def since(connection: Connection, model: str, commit_id: int) -> set[str]:
    """Removes those of a commit or later: they know what it brought. Returns blobs that may be let go of."""
    return _remove(connection, model, moment.c.commit_id >= commit_id)


def before(connection: Connection, model: str, client: str) -> list[Stored]:
    """Moments that do not know a client, newest first; the present memory is the first one, raw, where no commit has
    brought anything of it yet."""
    of_client = stream.c.model == model, stream.c.client == client
    contributes_since = connection.scalars(select(stream.c.contributes_since).where(*of_client)).one_or_none()
    chosen = select(*_STORED).where(moment.c.model == model).order_by(moment.c.commit_id.desc())
    if contributes_since is not None:
        return list(connection.execute(chosen.where(moment.c.commit_id < contributes_since)))
    present = select(memory.c.commit_id, memory.c.sample_count, memory.c.digest, memory.c.content)
    return [*connection.execute(present.where(memory.c.model == model)), *connection.execute(chosen)]


def commits(connection: Connection, model: str) -> Collection[int]:
    """Of the moments that are kept, oldest first."""
    return connection.scalars(
        select(moment.c.commit_id).where(moment.c.model == model).order_by(moment.c.commit_id)
    ).all()


def _remove(connection: Connection, model: str, which: ColumnElement[bool]) -> set[str]:
    chosen = and_(moment.c.model == model, which)
    blobs = set(connection.scalars(select(moment.c.digest).where(chosen, moment.c.content.is_(None))))
    connection.execute(delete(moment).where(chosen))
    return blobs
