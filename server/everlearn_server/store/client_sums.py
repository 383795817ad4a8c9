"""Each client's own sums, where a model declares to keep them: one row a client, sealed under that client's key.

A row is written in the transaction that commits a memory which knows the same batches (`Commit.client_sums`), or not at
all: so the rows of a model add up to its memory, through any crash. Rows are blobs beyond a quarter of a MiB, so that
what a commit holds in RAM does not grow with the clients in it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from sqlalchemy import ColumnElement, Connection, delete, select, update
from sqlalchemy.dialects.sqlite import insert as upsert

from everlearn.errors import DataLossError
from everlearn_server.store.blobs import Blobs
from everlearn_server.store.client_keys import ClientKeys, ClientSealer
from everlearn_server.store.database import Database
from everlearn_server.store.payload import collect, recover
from everlearn_server.store.rows import ClientSumsRow
from everlearn_server.store.schema import client_key, client_sums, stream

INLINE_BYTES: Final = 1 << 18
Sealed = tuple[str, bytes | None]
"""Digest, and the bytes where they are not a blob."""


class ClientSums:
    """Of one model. Methods block and are not for the event loop; they raise UnavailableError once the store has failed
    or is closed."""

    def __init__(self, database: Database, blobs: Blobs, model: str, sealer: ClientSealer) -> None:
        self._database = database
        self._blobs = blobs
        self._model = model
        self._sealer = sealer

    def clients(self) -> list[str]:
        """Those that have a row."""
        return self._database.call(self._clients)

    def find(self, clients: Collection[str]) -> dict[str, Sealed]:
        """What was last committed of some clients, at once; those without a row are left out."""
        return self._database.call(self._find, clients)

    def opened(self, client: str, sealed: Sealed) -> bytes:
        """Raises DataLossError where it is damaged, or its key is gone."""
        digest, inline = sealed
        data = recover(self._blobs, digest, inline, what=f"what is kept of client {client!r}")
        plain = self._sealer.unseal(client, data)
        if plain is None:
            raise DataLossError(f"the sums of client {client!r} do not open: their key is gone")
        return plain

    def sealed(self, client: str, plain: bytes, samples: int) -> ClientSumsRow:
        """Seals a client's sums for the next commit, which releases what is stored beside the database here."""
        sealed = self._sealer.seal(client, plain)
        assert sealed is not None, "no key of a model's own sums is forgotten while it runs"
        if len(sealed) > INLINE_BYTES:
            digest, inline = self._database.call(self._stow, sealed), None
        else:
            digest, inline = hashlib.sha256(sealed).hexdigest(), sealed
        return ClientSumsRow(client=client, sample_count=samples, digest=digest, size=len(sealed), content=inline)

    def emptied(self, client: str) -> ClientSumsRow:
        """In place of what is damaged: nothing, which does not open either."""
        return ClientSumsRow(client=client, sample_count=0, digest=hashlib.sha256(b"").hexdigest(), size=0, content=b"")

    def forget_key(self, client: str) -> None:
        """Its key goes with the commit that is being made: what is sealed next makes another."""
        self._sealer.renew(client)

    def _clients(self) -> list[str]:
        columns = client_sums.c
        with self._database.snapshot() as connection:
            chosen = select(columns.client).where(columns.model == self._model).order_by(columns.client)
            return list(connection.scalars(chosen))

    def _find(self, clients: Collection[str]) -> dict[str, Sealed]:
        columns = client_sums.c
        chosen = select(columns.client, columns.digest, columns.content).where(
            columns.model == self._model, columns.client.in_(clients)
        )
        with self._database.snapshot() as connection:
            return {row.client: (row.digest, row.content) for row in connection.execute(chosen)}

    def _stow(self, sealed: bytes) -> str:
        try:
            return self._blobs.write(sealed)
        except OSError as error:
            self._database.die(error)


class ClientSumsStore:
    """Of all models."""

    def __init__(self, database: Database, blobs: Blobs, keys: ClientKeys) -> None:
        self._database = database
        self._blobs = blobs
        self._keys = keys

    async def open(self, model: str) -> ClientSums:
        """What a model keeps of its clients."""
        return ClientSums(self._database, self._blobs, model, await self._keys.sealer(model))

    def drop(self, model: str) -> int:
        """Deletes all rows of a model with their keys; returns how many there were. Blocks."""
        return self._database.call(self._drop, model)

    def _drop(self, model: str) -> int:
        with self._database.snapshot() as connection:
            if connection.execute(select(client_sums.c.client).where(client_sums.c.model == model)).first() is None:
                return 0
        with self._database.transaction() as connection:
            clients = connection.scalars(select(client_sums.c.client).where(client_sums.c.model == model)).all()
            gone = remove(connection, model)
        collect(self._database, self._blobs, gone)
        self._database.scrub()
        return len(clients)


@contextmanager
def stored(database: Database, blobs: Blobs, rows: Sequence[ClientSumsRow]) -> Iterator[None]:
    """Around the transaction that names the rows' blobs: where it fails they go again, not after a storage error."""
    held = [row.digest for row in rows if row.content is None]
    try:
        yield
    except Exception:
        for digest in held:
            blobs.release(digest)
        if not database.failed:
            collect(database, blobs, held)
        raise
    for digest in held:
        blobs.release(digest)


def put(connection: Connection, model: str, rows: Sequence[ClientSumsRow]) -> set[str]:
    """Writes rows; returns the digests of blobs that they named before."""
    replaced = _named(connection, client_sums.c.model == model, client_sums.c.client.in_([row.client for row in rows]))
    fresh = upsert(client_sums)
    changed = {name: fresh.excluded[name] for name in ("sample_count", "digest", "size", "content")}
    statement = fresh.on_conflict_do_update(index_elements=["model", "client"], set_=changed)
    connection.execute(statement, [{"model": model, **vars(row)} for row in rows])
    return replaced


def recount(connection: Connection, model: str, rows: Sequence[ClientSumsRow]) -> None:
    """What the ledger says of clients is what their own sums say: after a class was taken out of both."""
    for row in rows:
        of_client = stream.c.model == model, stream.c.client == row.client
        connection.execute(update(stream).where(*of_client).values(sample_count=row.sample_count))


def remove(connection: Connection, model: str, clients: Collection[str] | None = None) -> set[str]:
    """Deletes rows and keys, of these clients or of all; returns the digests of blobs that they named."""
    chosen: list[ColumnElement[bool]] = [client_sums.c.model == model]
    if clients is not None:
        chosen.append(client_sums.c.client.in_(clients))
    gone = _named(connection, *chosen)
    of_them = client_key.c.client.in_(select(client_sums.c.client).where(*chosen))
    connection.execute(delete(client_key).where(client_key.c.model == model, of_them))
    connection.execute(delete(client_sums).where(*chosen))
    return gone


def _named(connection: Connection, *chosen: ColumnElement[bool]) -> set[str]:
    return set(connection.scalars(select(client_sums.c.digest).where(client_sums.c.content.is_(None), *chosen)))
