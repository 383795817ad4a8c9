"""Statements of an erasure: which versions knew what was taken out, what goes with them, and the receipt of it."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields

from sqlalchemy import ColumnElement, Connection, delete, insert, or_, select, update

from everlearn_server.store import artefacts, client_sums, downloads, moments, references, versions
from everlearn_server.store.rows import Erasing, ErasureRow
from everlearn_server.store.schema import alias, client_key, commit_log, erasure, export, stream, version

ERASURE = [erasure.c[field.name] for field in fields(ErasureRow)]


@dataclass(frozen=True, kw_only=True)
class Erased:
    """What the transaction wrote, and what may be unlinked once it is committed."""

    row: ErasureRow
    versions: Sequence[int]
    """That went."""
    blobs: set[str]
    """Digests that rows named which are gone."""


def erase(connection: Connection, model: str, erasing: Erasing, commit_id: int) -> Erased:
    """In the transaction that commits a memory without it: the client's stream, the versions that knew it with their
    aliases and exports, and the receipt."""
    gone = knowing(connection, model, erasing.since_commit)
    blobs = references.named_by_versions(connection, model, gone)
    for number in connection.scalars(
        select(export.c.version_number).where(export.c.model == model, export.c.version_number.in_(gone))
    ).all():
        blobs |= artefacts.remove_export(connection, model, number)
    connection.execute(delete(alias).where(alias.c.model == model, alias.c.number.in_(gone)))
    versions.remove(connection, model, gone)
    if erasing.stream is not None:
        left = {"sample_count": erasing.stream.sample_count, "learned_mac": erasing.stream.learned_mac}
        of_client = stream.c.model == model, stream.c.client == erasing.client
        if erasing.is_whole:
            blobs |= _moments_with(connection, model, erasing.client)
        first = {"first_commit": None, "contributes_since": None} if erasing.is_whole else {}
        connection.execute(update(stream).where(*of_client).values(**left, **first))
    if erasing.client and erasing.is_whole:  # what it sealed in pages and blobs that are overwritten late opens no more
        blobs |= client_sums.remove(connection, model, [erasing.client])
        of_client = client_key.c.model == model, client_key.c.client == erasing.client
        connection.execute(delete(client_key).where(*of_client))
    receipt_json, signature = erasing.attest(
        commit_id, gone, downloads.knowing(connection, model, erasing.since_commit)
    )
    if erasing.client and erasing.is_whole:  # it stands in its own receipt, and nowhere else
        downloads.forget(connection, model, erasing.client)
    values = {
        "model": model,
        "client": erasing.client,
        "label": erasing.label,
        "sample_count": erasing.sample_count,
        "commit_id": commit_id,
        "create_time_s": time.time(),
        "sequences_json": json.dumps([list(each) for each in erasing.sequences], ensure_ascii=False),
        "receipt_json": receipt_json,
        "signature": signature,
    }
    row = connection.execute(insert(erasure).values(values).returning(*ERASURE)).one()
    return Erased(row=ErasureRow(**row._mapping), versions=gone, blobs=blobs)


def _moments_with(connection: Connection, model: str, client: str) -> set[str]:
    """Removes the earlier moments that know a client; those before it are what others can be erased by later."""
    chosen = select(stream.c.contributes_since).where(stream.c.model == model, stream.c.client == client)
    contributes_since = connection.scalars(chosen).one_or_none()
    return set() if contributes_since is None else moments.since(connection, model, contributes_since)


def knowing(connection: Connection, model: str, since_commit: int | None) -> list[int]:
    """Numbers of the versions that may know what was first in a commit; None: since ever."""
    chosen: list[ColumnElement[bool]] = [version.c.model == model]
    if since_commit is not None:
        chosen.append(or_(version.c.commit_id == 0, version.c.commit_id >= since_commit))
    return sorted(connection.scalars(select(version.c.number).where(*chosen)))


def samples_before(connection: Connection, model: str, commit: int | None) -> int:
    """Samples in the state before a commit; 0 where that is not known any more."""
    of_model = commit_log.c.model == model, commit_log.c.id < (commit or 0)
    chosen = select(commit_log.c.sample_count).where(*of_model).order_by(commit_log.c.id.desc()).limit(1)
    return connection.scalar(chosen) or 0


def listed(connection: Connection, model: str) -> tuple[ErasureRow, ...]:
    """Oldest first."""
    rows = connection.execute(select(*ERASURE).where(erasure.c.model == model).order_by(erasure.c.id))
    return tuple(ErasureRow(**row._mapping) for row in rows)
