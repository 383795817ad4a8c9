"""What was learned, counted once: memory, watermarks, rejections and versions, committed together.

The writer of a model is the single place that deduplicates: it integrates a batch only if its sequence is one above
the client's tail. The commit therefore accepts sequences that came with an older epoch than the stored one: they are in
the memory already, the newer connection gets their watermark, and its writer treats its resends as duplicates. What the
commit checks is that no watermark stands still or moves back, and that no epoch comes from the future. Both would be
bugs that count a batch twice, so they end the process before anything is written, like a storage error.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields

from sqlalchemy import Connection, bindparam, insert, select, text
from sqlalchemy.dialects.sqlite import Insert
from sqlalchemy.dialects.sqlite import insert as upsert

from everlearn.errors import EverlearnError, NotFoundError, PreconditionError, TimelineChangedError
from everlearn_server.store import client_sums, downloads, models, moments, versions
from everlearn_server.store import erasures as erasing
from everlearn_server.store.blobs import Blobs
from everlearn_server.store.database import Database
from everlearn_server.store.history import prune, pruning
from everlearn_server.store.payload import INLINE_BYTES, Payload, collect, recover, stowed
from everlearn_server.store.rows import (
    Commit,
    CommitRow,
    DownloadRow,
    ErasureRow,
    MemoryRow,
    ModelRow,
    Receipt,
    RejectRow,
    SpendRow,
    StreamRow,
)
from everlearn_server.store.schema import commit_log, memory, privacy_spend, reject, stream
from everlearn_server.store.schema import model as model_table
from everlearn_server.store.sizes import of_what_is_learned

MEMORY = [memory.c[field.name] for field in fields(MemoryRow)]
REJECT = [reject.c[field.name] for field in fields(RejectRow)]
SPEND = [privacy_spend.c[field.name] for field in fields(SpendRow)]
STREAM = [field.name for field in fields(StreamRow)]
COMMITS_KEPT, REJECTS_KEPT = 1_000, 10_000
"""Per model."""


def _put_memory_statement(*, with_content: bool) -> Insert:
    fresh = upsert(memory)
    # `excluded`, or the megabytes would be bound twice.
    names = [column.name for column in MEMORY] + ["content"] * with_content
    replaced = {name: fresh.excluded[name] for name in names}
    return fresh.on_conflict_do_update(index_elements=["model"], set_=replaced)


# What every commit runs is built once: building a statement takes longer than running it.
_OWNER = select(model_table.c.uid, model_table.c.lineage).where(model_table.c.name == bindparam("name"))
_STATE = select(*MEMORY).where(memory.c.model == bindparam("model"))
_LOG = insert(commit_log).returning(commit_log.c.id)
_PRUNE_LOG = pruning(commit_log.c.id, commit_log.c.model == bindparam("model"))
_PUT_MEMORY = _put_memory_statement(with_content=True)
_PUT_BESIDE_MEMORY = _put_memory_statement(with_content=False)
_MOVE = text(
    f"""
    INSERT INTO stream (model, client, epoch, durable_sequence, sample_count, learned_mac, first_commit)
        SELECT :model, value ->> 0, value ->> 1, value ->> 2, value ->> 3,
            iif(value ->> 4, substr(:macs, 1 + {models.MAC_BYTES} * key, {models.MAC_BYTES}), NULL), :commit_id
        FROM json_each(:moved) AS moved
        WHERE EXISTS (SELECT 1 FROM stream WHERE model = :model AND client = moved.value ->> 0)
    ON CONFLICT (model, client) DO UPDATE SET durable_sequence = excluded.durable_sequence,
        sample_count = excluded.sample_count, learned_mac = excluded.learned_mac,
        first_commit = coalesce(first_commit, excluded.first_commit),
        contributes_since =
            iif(contributes_since IS NULL AND excluded.sample_count > 0, excluded.first_commit, contributes_since)
    WHERE epoch >= excluded.epoch AND durable_sequence < excluded.durable_sequence
    """
)
"""`moved`: [client, epoch, watermark, samples, whether it has a MAC] of each stream; `macs`: those, end to end. Inserts
nothing: each of them is there. (An UPDATE ... FROM would look at all of the model's streams for each that moved.)"""


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

    async def quarantine(self, model: str, client: str, quarantined: bool) -> None:
        """Says durably whether anything of a client is learned. Raises NotFoundError for one that never came."""
        await self._database.write(_quarantine, model, client, quarantined)

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

    def memory_now(self, model: str) -> bytes | None:
        """As `memory`, for a worker thread, which waits."""
        return self._database.call(self._memory, model)

    async def state(self, model: str) -> MemoryRow | None:
        """What stands beside the memory, without its bytes; None before the first commit of a lineage."""
        return await self._database.read(_state, model)

    async def sizes(self, model: str) -> dict[str, int]:
        """Bytes at rest of what is learned, by kind."""
        return await self._database.read(of_what_is_learned, model)

    async def commits(self, model: str, *, limit: int = 100) -> tuple[CommitRow, ...]:
        """The last commits, oldest first; the store keeps 1,000 a model."""
        return await self._database.read(_commits, model, limit)

    async def erasures(self, model: str) -> tuple[ErasureRow, ...]:
        """What was taken out of a model, oldest first."""
        return await self._database.read(erasing.listed, model)

    async def knowing(self, model: str, since_commit: int | None) -> list[int]:
        """Stored versions that may know what was first in a commit; None: since ever."""
        return await self._database.read(erasing.knowing, model, since_commit)

    async def samples_before(self, model: str, commit: int | None) -> int:
        """In the state before a commit; 0 where that is not known any more."""
        return await self._database.read(erasing.samples_before, model, commit)

    async def holding(self, model: str, since_commit: int | None) -> tuple[DownloadRow, ...]:
        """Clients whose last download may know what was first in a commit; None: since ever."""
        return await self._database.read(downloads.knowing, model, since_commit)

    async def rejected(self, model: str, client: str) -> frozenset[int]:
        """Sequences of a client that are among the rejections that are kept."""
        return await self._database.read(_rejected, model, client)

    async def spends(self, model: str) -> tuple[SpendRow, ...]:
        """What has been spent of a model's budget, in all of its lineages."""
        return await self._database.read(_spends, model)

    async def rejects(self, model: str, *, limit: int = 100) -> tuple[RejectRow, ...]:
        """The last rejections, oldest first; the store keeps 10,000 a model."""
        return await self._database.read(_rejects, model, limit)

    def _replace(self, row: ModelRow, commit: Commit, expected_etag: str) -> ModelRow:
        try:
            with stowed(self._database, self._blobs, commit.memory) as content:
                with self._database.transaction() as connection:
                    self._failpoint("begun")
                    previous = _state(connection, row.name)
                    stored = models.put(connection, row, expected_etag, learned_goes_on=True)
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
        busy_s = -time.perf_counter()
        head = b"" if commit.version is None else commit.version.head
        try:
            with (
                stowed(self._database, self._blobs, commit.memory) as content,
                stowed(self._database, self._blobs, head) as solved,
                client_sums.stored(self._database, self._blobs, commit.client_sums),
                stowed(self._database, self._blobs, moments.to_keep(self._database, commit, self._memory)) as kept,
            ):
                busy_s += time.perf_counter() - time.thread_time()
                commit_id, previous, gone, erased = self._transact(commit, content, solved, kept)
                busy_s += time.thread_time() + self._database.commit_s - time.perf_counter()
                self._failpoint("committed")
            if previous is not None and previous.size > INLINE_BYTES and previous.digest != content.digest:
                gone.add(previous.digest)
            collect(self._database, self._blobs, gone)
            if erased is not None:
                self._database.scrub()
        except EverlearnError:
            raise
        except Exception as error:
            self._database.die(error)
        return Receipt(
            commit_id=commit_id,
            busy_s=busy_s + time.perf_counter(),
            bytes_written=content.size + solved.size + sum(row.size for row in commit.client_sums),
            erased=None if erased is None else erased.row,
            withdrawn=() if erased is None else erased.versions,
        )

    def _transact(
        self, commit: Commit, content: Payload, head: Payload, kept: Payload
    ) -> tuple[int, MemoryRow | None, set[str], erasing.Erased | None]:
        with self._database.transaction() as connection:
            self._failpoint("begun")
            _verify(connection, commit, self._timeline)
            previous, gone = _state(connection, commit.model), set[str]()
            if commit.keeping is not None and previous is not None and kept.size:
                gone = moments.add(connection, commit.model, previous, kept, commit.keeping.most)
            if commit.version is not None:
                versions.add(connection, commit.version, head)
            for alias, number in commit.aliases.items():
                versions.point(connection, commit.model, alias, number, "commit")
            commit_id = _log(connection, commit, content, previous)
            _put_memory(connection, commit, content, _Link(commit_id=commit_id, previous=previous))
            _put_streams(connection, commit, commit_id)
            _put_rejects(connection, commit)
            _put_spends(connection, commit)
            if commit.client_sums:
                gone |= client_sums.put(connection, commit.model, commit.client_sums)
            erased = None
            if commit.erasing is not None:
                if commit.erasing.label:
                    client_sums.recount(connection, commit.model, commit.client_sums)
                erased = erasing.erase(connection, commit.model, commit.erasing, commit_id)
                gone |= erased.blobs
            self._failpoint("before_commit")
        return commit_id, previous, gone, erased

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
    found = connection.execute(_OWNER, {"name": commit.model}).one_or_none()
    if found is None:
        raise NotFoundError(f"there is no model {commit.model!r} any more", field="model")
    if tuple(found) != (commit.uid, commit.lineage):
        raise PreconditionError(
            f"model {commit.model!r} was replaced while the group was formed; reload it", reason="LINEAGE_CHANGED"
        )


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
    commit_id = connection.execute(_LOG, values).scalar_one()
    connection.execute(_PRUNE_LOG, {"model": commit.model, "keep": COMMITS_KEPT})
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
    # A group of rejections alone leaves the memory as it was: its megabytes are not written again.
    if link.previous is not None and link.previous.digest == content.digest:
        connection.execute(_PUT_BESIDE_MEMORY, asdict(row))
    else:
        connection.execute(_PUT_MEMORY, asdict(row) | {"content": content.inline})


def _put_streams(connection: Connection, commit: Commit, commit_id: int) -> None:
    """All in one statement: the driver lets go of the interpreter with each, and gets it back when others let it.

    The epoch stays: the stored one may be newer than the one the batches came with.
    """
    if not commit.streams:
        return
    rows = commit.streams.items()
    moved = [
        [client, row.epoch, row.durable_sequence, row.sample_count, row.learned_mac is not None] for client, row in rows
    ]
    macs = b"".join(row.learned_mac or bytes(models.MAC_BYTES) for _, row in rows)
    values = {"model": commit.model, "commit_id": commit_id, "moved": json.dumps(moved), "macs": macs}
    if connection.execute(_MOVE, values).rowcount != len(rows):
        stored = _streams(connection, commit.model)
        told = [f"{client!r}: stored {stored.get(client)}, committed {row}" for client, row in rows]
        raise WatermarkError(f"{commit.model!r}: one of these stands still, moves back or is unknown: {told}")


def _put_rejects(connection: Connection, commit: Commit) -> None:
    if commit.rejects:
        rows = [asdict(row) | {"model": commit.model} for row in commit.rejects]
        connection.execute(insert(reject), rows)
        prune(connection, reject.c.id, reject.c.model == commit.model, keep=REJECTS_KEPT)


def _put_spends(connection: Connection, commit: Commit) -> None:
    if commit.spends:
        fresh = upsert(privacy_spend)
        replaced = {name: fresh.excluded[name] for name in ("releases", "rho", "update_time_s")}
        keys = ["model", "lineage", "client"]
        rows = [asdict(row) | {"model": commit.model, "update_time_s": time.time()} for row in commit.spends]
        connection.execute(fresh.on_conflict_do_update(index_elements=keys, set_=replaced), rows)


def _spends(connection: Connection, model: str) -> tuple[SpendRow, ...]:
    rows = connection.execute(select(*SPEND).where(privacy_spend.c.model == model))
    return tuple(SpendRow(**row._mapping) for row in rows)


def _streams(connection: Connection, model: str) -> dict[str, StreamRow]:
    rows = connection.execute(select(stream).where(stream.c.model == model).order_by(stream.c.client))
    return {row.client: StreamRow(**{name: row._mapping[name] for name in STREAM}) for row in rows}


def _open_stream(connection: Connection, model: str, client: str) -> StreamRow:
    models.get(connection, model)
    fresh = upsert(stream).values(
        model=model, client=client, epoch=1, durable_sequence=0, learned_mac=bytes(models.MAC_BYTES)
    )
    opened = fresh.on_conflict_do_update(index_elements=["model", "client"], set_={"epoch": stream.c.epoch + 1})
    row = connection.execute(opened.returning(*(stream.c[name] for name in STREAM))).one()
    return StreamRow(**row._mapping)


def _quarantine(connection: Connection, model: str, client: str, quarantined: bool) -> None:
    models.get(connection, model)
    of_client = stream.c.model == model, stream.c.client == client
    if not connection.execute(stream.update().where(*of_client).values(quarantined=quarantined)).rowcount:
        raise NotFoundError(
            f"model {model!r} has no client {client!r}; `everlearn clients {model}` lists them", field="client"
        )


def _state(connection: Connection, model: str) -> MemoryRow | None:
    row = connection.execute(_STATE, {"model": model}).one_or_none()
    return None if row is None else MemoryRow(**row._mapping)


def _commits(connection: Connection, model: str, limit: int) -> tuple[CommitRow, ...]:
    last = select(commit_log).where(commit_log.c.model == model).order_by(commit_log.c.id.desc()).limit(limit)
    return tuple(CommitRow(**row._mapping) for row in reversed(connection.execute(last).all()))


def _rejects(connection: Connection, model: str, limit: int) -> tuple[RejectRow, ...]:
    last = select(*REJECT).where(reject.c.model == model).order_by(reject.c.id.desc()).limit(limit)
    return tuple(RejectRow(**row._mapping) for row in reversed(connection.execute(last).all()))


def _rejected(connection: Connection, model: str, client: str) -> frozenset[int]:
    chosen = select(reject.c.sequence).where(reject.c.model == model, reject.c.client == client)
    return frozenset(connection.scalars(chosen))
