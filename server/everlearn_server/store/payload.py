"""Bytes that are a column while they are small and a blob beyond: a column costs one fsync, a file two and a rename."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from everlearn.errors import DataLossError
from everlearn_server.store.blobs import Blobs
from everlearn_server.store.database import Database
from everlearn_server.store.references import referenced

INLINE_BYTES = 4 << 20
"""Largest payload that is kept inside its row."""


@dataclass(frozen=True, kw_only=True)
class Payload:
    """What the row holds: always the digest, the bytes only if they are inline."""

    digest: str
    size: int
    inline: bytes | None


@contextmanager
def stowed(database: Database, blobs: Blobs, data: bytes) -> Iterator[Payload]:
    """Makes large bytes durable before the block, in which the caller commits the row that names them.

    If the block raises, the blob goes again; not after a storage error, because then nobody knows what was committed.
    """
    blob = len(data) > INLINE_BYTES
    try:
        digest = blobs.write(data) if blob else hashlib.sha256(data).hexdigest()
    except OSError as error:
        database.die(error)
    try:
        yield Payload(digest=digest, size=len(data), inline=None if blob else data)
    except Exception:
        if blob:
            blobs.release(digest)
            if not database.failed:
                collect(database, blobs, {digest})
        raise
    if blob:
        blobs.release(digest)


def collect(database: Database, blobs: Blobs, candidates: Collection[str]) -> None:
    """Unlinks those of the blobs that no row names any more. A crash in between leaves orphans for the next start."""
    if not candidates:
        return
    with database.snapshot() as connection:
        kept = referenced(connection, candidates)
    blobs.remove(digest for digest in candidates if digest not in kept)


def recover(blobs: Blobs, digest: str, inline: bytes | None, *, what: str) -> bytes:
    """The bytes, verified. Raises DataLossError, naming `what`, if they are not what was stored."""
    if inline is None:
        return blobs.read(digest)
    if hashlib.sha256(inline).hexdigest() != digest:
        raise DataLossError(f"{what} does not match its digest {digest}; restore a backup")
    return inline
