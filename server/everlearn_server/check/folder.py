"""Checks all of a data folder: database, blobs, keys, and every model's ledger, memory, versions and exports."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from sqlalchemy import Connection, select, text
from sqlalchemy.exc import DBAPIError

from everlearn.errors import DataLossError, EverlearnError, NotFoundError
from everlearn_server.check import ledger, releases
from everlearn_server.check.findings import ModelSummary, Report
from everlearn_server.check.reading import locked, opened
from everlearn_server.store import keys, manifest, models, references, schema
from everlearn_server.store.blobs import DIGEST, TEMPORARY
from everlearn_server.store.manifest import Manifest, digest_of
from everlearn_server.store.rows import ModelRow

T = TypeVar("T")
_SHOWN = 20
"""Findings of SQLite that are told."""


def check(folder: Path) -> Report:
    """Reads everything, changes nothing. What is wrong is in the report.

    Raises NotFoundError (no data folder), UnavailableError (a server runs on it), PreconditionError (of a newer
    release).
    """
    report = Report(folder=str(folder))
    with locked(folder):
        _manifest(folder, report)
        _keys(folder, report)
        intact = _blobs(folder, report)
        try:
            with opened(folder) as (connection, report.revision):
                _database(connection, report)
                _rows(connection, folder, intact, report)
        except (DBAPIError, sqlite3.Error) as error:
            reason = error.orig if isinstance(error, DBAPIError) else error
            report.damage("database", f"it cannot be read: {reason}; restore a backup")
    return report


def _manifest(folder: Path, report: Report) -> None:
    """Of a backup."""
    if not (folder / manifest.NAME).exists():
        return
    try:
        report.damage("backup", Manifest.read(folder).problems(folder))
    except (DataLossError, NotFoundError) as error:
        report.damage("backup", error.message)


def _keys(folder: Path, report: Report) -> None:
    path = folder / "keys" / "master"
    if not path.exists():
        report.note("keys", "there is no keys/master: the next start makes one, and nothing sealed before will open")
        return
    try:
        keys.Keys(path.read_bytes())
    except EverlearnError as error:
        report.damage("keys", f"keys/master has {path.stat().st_size} bytes: {error.message}")


def _opened_keys(folder: Path) -> keys.Keys | None:
    try:
        return keys.Keys((folder / "keys" / "master").read_bytes())
    except (FileNotFoundError, EverlearnError):
        return None


def _blobs(folder: Path, report: Report) -> set[str]:
    """Digests of the blobs that are what their names say."""
    intact = set()
    for path in sorted((folder / "blobs" / "sha256").glob("??/*")):
        where = f"blob {path.name}"
        if path.name.startswith(TEMPORARY):
            report.note(where, "a crash left it half written; the next start removes it")
            continue
        if not DIGEST.fullmatch(path.name) or path.name[:2] != path.parent.name:
            report.note(where, "this is no blob; everlearn did not put it here")
            continue
        try:
            found = digest_of(path)
        except OSError as error:
            report.damage(where, f"it cannot be read: {error.strerror}")
            continue
        report.blobs += 1
        report.blob_bytes += found.size
        if found.sha256 == path.name:
            intact.add(path.name)
        else:
            report.damage(where, "it has other bytes than its name says")
    return intact


def _database(connection: Connection, report: Report) -> None:
    found = connection.scalars(text(f"PRAGMA integrity_check({_SHOWN})")).all()
    report.damage("database", [line for line in found if line != "ok"])
    for table, row, parent, _ in connection.execute(text("PRAGMA foreign_key_check")).fetchmany(_SHOWN):
        report.damage("database", f"row {row} of {table} belongs to a {parent} that is not there")
    timelines = connection.scalars(select(schema.timeline.c.value)).all()
    if len(timelines) != 1:
        report.damage("database", f"it has {len(timelines)} timelines, not one")
    report.timeline = timelines[0] if timelines else ""


def _rows(connection: Connection, folder: Path, intact: set[str], report: Report) -> None:
    named = _guarded(report, "database", lambda: references.referenced(connection)) or set()
    there = {path.name for path in (folder / "blobs" / "sha256").glob("??/*")}
    for digest in sorted(named - there):
        report.damage(f"blob {digest}", "it is missing, and rows name it")
    for digest in sorted(intact - named):
        report.note(f"blob {digest}", "no row names it; the next start removes it")
    store = releases.Bytes(folder=folder, intact=intact, keys=_opened_keys(folder))
    _guarded(report, "trunks", lambda: releases.trunks(connection, store, report))
    for model in _guarded(report, "models", lambda: models.every(connection)) or ():
        summary = _guarded(report, f"model {model.name}", lambda: _model(connection, model, store, report))  # noqa: B023
        if summary is not None:
            report.models.append(summary)


def _model(connection: Connection, model: ModelRow, store: releases.Bytes, report: Report) -> ModelSummary:
    learned = ledger.check(connection, model, store, report)
    versions = releases.versions(connection, model, store, report)
    exports = releases.exports(connection, model, store, report)
    return ModelSummary(
        name=model.name,
        samples=learned.samples,
        classes=learned.classes,
        commit=learned.commit,
        clients=learned.clients,
        versions=versions,
        exports=exports,
    )


def _guarded(report: Report, where: str, look: Callable[[], T]) -> T | None:
    """What one look gives; None, and a finding, where a page cannot be read."""
    try:
        return look()
    except DBAPIError as error:
        report.damage(where, f"it cannot be read: {error.orig}; restore a backup")
        return None
