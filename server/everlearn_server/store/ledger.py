"""What was learned, counted once: memory, watermarks, rejections and versions, committed together.

The writer of a model is the single place that deduplicates: it integrates a batch only if its sequence is one above
the client's tail. The commit therefore accepts sequences that came with an older epoch than the stored one: they are in
the memory already, the newer connection gets their watermark, and its writer treats its resends as duplicates. What the
commit checks is that no watermark stands still or moves back, and that no epoch comes from the future. Both would be
bugs that count a batch twice, so they end the process before anything is written, like a storage error.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, fields

from sqlalchemy import Connection, bindparam, insert, select
from sqlalchemy.dialects.sqlite import insert as upsert

from everlearn.errors import EverlearnError, NotFoundError, PreconditionError, TimelineChangedError
from everlearn_server.store import models, versions
from everlearn_server.store.blobs import Blobs
from everlearn_server.store.database import Database
from everlearn_server.store.history import prune
from everlearn_server.store.payload import INLINE_BYTES, Payload, collect, recover, stowed
from everlearn_server.store.rows import Commit, CommitRow, MemoryRow, ModelRow, Receipt, RejectRow, StreamRow
from everlearn_server.store.schema import commit_log, memory, reject, stream

MEMORY = [memory.c[field.name] for field in fields(MemoryRow)]
REJECT = [reject.c[field.name] for field in fields(RejectRow)]
COMMITS_KEPT = 1_000
"""Per model."""
REJECTS_KEPT = 10_000
"""Per model."""


class WatermarkError(Exception):
    """The writer asks for a watermark that would count a batch twice: a bug, never a client's fault."""


class Ledger:
    """All methods raise UnavailableError once the store has failed or is closed."""

    def __init__(self, database: Database, blobs: Blobs, *, timeline: str, failpoint: Callable[[str], None]) -> None:
        self._database = database
        self._blobs = blobs
        self._timeline = timeline
        self._failpoint = failpoint

    async def streams(self, model: str) -> dict[str, StreamRow]:
        """Client -> its newest epoch and how far it is durable."""
        return await self._database.read(_streams, model)

    async def open_stream(self, model: str, client: str) -> StreamRow:
        """Begins a new epoch, durably, and so fences every older connection of this client. Raises NotFoundError."""
        return await self._database.write(_open_stream, model, client)

    async def commit(self, commit: Commit) -> Receipt:
        """Makes a group durable: all of it, once, or (an exception) nothing. Acknowledge after it returns, not before.

        Raises TimelineChangedError, NotFoundError (model deleted; alias of no version), PreconditionError with reason
        LINEAGE_CHANGED (model replaced); after each of these nothing is written and the writer gives up its memory.
        Everything else that goes wrong, a violated invariant of the writer included, is fatal. A cancelled caller does
        not know the outcome: shield the call.
        """
        return await self._database.run(self._commit, commit)

    async def replace(self, row: ModelRow, commit: Commit, *, expected_etag: str) -> ModelRow:
        """Begins a model's next lineage with a memory, in one transaction: the row, whose lineage is the commit's, and
        the memory; streams stay where they are. Returns the row as it is stored.

        Raises ConflictError for a stale etag, and what `commit` raises; after each of these nothing is written.
        """
        return await self._database.run(self._replace, row, commit, expected_etag)

    async def memory(self, model: str) -> bytes | None:
        """The memory of the last commit, verified; None before the first. Raises DataLossError."""
        return await self._database.run(self._memory, model)

    async def state(self, model: str) -> MemoryRow | None:
        """What stands beside the memory, without its bytes; None before the first commit of a lineage."""
        return await self._database.read(_state, model)

    async def commits(self, model: str, *, limit: int = 100) -> tuple[CommitRow, ...]:
        """The last commits, oldest first; the store keeps 1,000 a model."""
        return await self._database.read(_commits, model, limit)

    async def rejects(self, model: str, *, limit: int = 100) -> tuple[RejectRow, ...]:
        """The last rejections, oldest first; the store keeps 10,000 a model."""
        return await self._database.read(_rejects, model, limit)

    def _replace(self, row: ModelRow, commit: Commit, expected_etag: str) -> ModelRow:
        try:
            with stowed(self._database, self._blobs, commit.memory) as content:
                with self._database.transaction() as connection:
                    self._failpoint("begun")
                    previous = _state(connection, row.name)
                    stored = models.put(connection, row, expected_etag)
                    _verify(connection, commit, self._timeline)
                    link = _Link(commit_id=_log(connection, commit, content, None), previous=None)
                    _put_memory(connection, commit, content, link)
                    self._failpoint("before_commit")
                self._failpoint("committed")
            if previous is not None and previous.size > INLINE_BYTES and previous.digest != content.digest:
                collect(self._database, self._blobs, {previous.digest})
        except EverlearnError:
            raise
        except Exception as error:
            self._database.die(error)
        return stored

    def _commit(self, commit: Commit) -> Receipt:
        started_s = time.perf_counter()
        head = b"" if commit.version is None else commit.version.head
        try:
            with (
                stowed(self._database, self._blobs, commit.memory) as content,
                stowed(self._database, self._blobs, head) as solved,
            ):
                commit_id, previous = self._transact(commit, content, solved)
                self._failpoint("committed")
            if previous is not None and previous.size > INLINE_BYTES and previous.digest != content.digest:
                collect(self._database, self._blobs, {previous.digest})
        except EverlearnError:
            raise
        except Exception as error:
            self._database.die(error)
        return Receipt(
            commit_id=commit_id,
            duration_s=time.perf_counter() - started_s,
            bytes_written=content.size + solved.size,
        )

    def _transact(self, commit: Commit, content: Payload, head: Payload) -> tuple[int, MemoryRow | None]:
        with self._database.transaction() as connection:
            self._failpoint("begun")
            _verify(connection, commit, self._timeline)
            previous = _state(connection, commit.model)
            if commit.version is not None:
                versions.add(connection, commit.version, head)
            for alias, number in commit.aliases.items():
                versions.point(connection, commit.model, alias, number, "commit")
            commit_id = _log(connection, commit, content, previous)
            _put_memory(connection, commit, content, _Link(commit_id=commit_id, previous=previous))
            _put_streams(connection, commit)
            _put_rejects(connection, commit)
            self._failpoint("before_commit")
        return commit_id, previous

    def _memory(self, model: str) -> bytes | None:
        with self._database.snapshot() as connection:
            row = connection.execute(select(memory.c.digest, memory.c.content).where(memory.c.model == model)).first()
        return None if row is None else recover(self._blobs, row[0], row[1], what=f"the memory of model {model!r}")


@dataclass(frozen=True, kw_only=True)
class _Link:
    commit_id: int
    previous: MemoryRow | None


def _verify(connection: Connection, commit: Commit, timeline: str) -> None:
    if commit.timeline != timeline:
        raise TimelineChangedError(
            f"the group belongs to timeline {commit.timeline}, the store is on {timeline}; reload", field="timeline"
        )
    model = models.find(connection, commit.model)
    if model is None:
        raise NotFoundError(f"there is no model {commit.model!r} any more", field="model")
    if (model.uid, model.lineage) != (commit.uid, commit.lineage):
        raise PreconditionError(
            f"model {commit.model!r} was replaced while the group was formed; reload it", reason="LINEAGE_CHANGED"
        )
    stored = _streams(connection, commit.model, among=commit.streams)
    for client, row in commit.streams.items():
        known = stored.get(client)
        if known is None or row.epoch > known.epoch or row.durable_sequence <= known.durable_sequence:
            raise WatermarkError(f"{commit.model!r}/{client!r}: stored {known}, committed {row}")


def _log(connection: Connection, commit: Commit, content: Payload, previous: MemoryRow | None) -> int:
    values = {
        "model": commit.model,
        "parent": None if previous is None else previous.commit_id,
        "lineage": commit.lineage,
        "memory_digest": content.digest,
        "sample_count": commit.sample_count,
        "stream_count": len(commit.streams),
        "reject_count": len(commit.rejects),
        "version": None if commit.version is None else commit.version.number,
        "create_time_s": time.time(),
    }
    commit_id = connection.execute(insert(commit_log).values(values).returning(commit_log.c.id)).scalar_one()
    prune(connection, commit_log.c.id, commit_log.c.model == commit.model, keep=COMMITS_KEPT)
    return commit_id


def _put_memory(connection: Connection, commit: Commit, content: Payload, link: _Link) -> None:
    row = MemoryRow(
        model=commit.model,
        lineage=commit.lineage,
        commit_id=link.commit_id,
        digest=content.digest,
        size=content.size,
        sample_count=commit.sample_count,
        prequential_json=commit.prequential_json,
        update_time_s=time.time(),
    )
    values: dict[str, object] = asdict(row)
    # A group of rejections alone leaves the memory as it was: its megabytes are not written again.
    if link.previous is None or link.previous.digest != content.digest:
        values["content"] = content.inline
    fresh = upsert(memory).values(values)
    # `excluded`, or the megabytes would be bound twice.
    replaced = {name: fresh.excluded[name] for name in values}
    connection.execute(fresh.on_conflict_do_update(index_elements=["model"], set_=replaced))


def _put_streams(connection: Connection, commit: Commit) -> None:
    if commit.streams:
        of_client = stream.update().where(stream.c.model == commit.model, stream.c.client == bindparam("moved"))
        # The epoch stays: the stored one may be newer than the one the batches came with.
        moved = [{"moved": client, "durable_sequence": row.durable_sequence} for client, row in commit.streams.items()]
        connection.execute(of_client, moved)


def _put_rejects(connection: Connection, commit: Commit) -> None:
    if commit.rejects:
        rows = [asdict(row) | {"model": commit.model} for row in commit.rejects]
        connection.execute(insert(reject), rows)
        prune(connection, reject.c.id, reject.c.model == commit.model, keep=REJECTS_KEPT)


def _streams(connection: Connection, model: str, *, among: Collection[str] | None = None) -> dict[str, StreamRow]:
    chosen = select(stream).where(stream.c.model == model).order_by(stream.c.client)
    rows = connection.execute(chosen if among is None else chosen.where(stream.c.client.in_(among)))
    return {row.client: StreamRow(epoch=row.epoch, durable_sequence=row.durable_sequence) for row in rows}


def _open_stream(connection: Connection, model: str, client: str) -> StreamRow:
    models.get(connection, model)
    fresh = upsert(stream).values(model=model, client=client, epoch=1, durable_sequence=0)
    opened = fresh.on_conflict_do_update(index_elements=["model", "client"], set_={"epoch": stream.c.epoch + 1})
    row = connection.execute(opened.returning(stream.c.epoch, stream.c.durable_sequence)).one()
    return StreamRow(epoch=row[0], durable_sequence=row[1])


def _state(connection: Connection, model: str) -> MemoryRow | None:
    row = connection.execute(select(*MEMORY).where(memory.c.model == model)).one_or_none()
    return None if row is None else MemoryRow(**row._mapping)


def _commits(connection: Connection, model: str, limit: int) -> tuple[CommitRow, ...]:
    last = select(commit_log).where(commit_log.c.model == model).order_by(commit_log.c.id.desc()).limit(limit)
    return tuple(CommitRow(**row._mapping) for row in reversed(connection.execute(last).all()))


def _rejects(connection: Connection, model: str, limit: int) -> tuple[RejectRow, ...]:
    last = select(*REJECT).where(reject.c.model == model).order_by(reject.c.id.desc()).limit(limit)
    return tuple(RejectRow(**row._mapping) for row in reversed(connection.execute(last).all()))
