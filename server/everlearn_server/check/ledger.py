"""What a model has learned: its memory, the commits that led there, who streamed, and what was tested."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from sqlalchemy import Connection, Row, func, select

from everlearn.errors import DataLossError, EverlearnError
from everlearn.learners.inspection import Inspected, inspect
from everlearn.metrics.records import record_for
from everlearn.spec.load import parse
from everlearn.spec.model import ModelSpec
from everlearn_server.check import own_sums
from everlearn_server.check.findings import Report
from everlearn_server.check.releases import Bytes
from everlearn_server.store.ledger import COMMITS_KEPT
from everlearn_server.store.rows import ModelRow
from everlearn_server.store.schema import (
    commit_log,
    erasure,
    memory,
    moment,
    operation,
    privacy_spend,
    reject,
    stream,
)

_AnyRow = Row[*tuple[object, ...]]


@dataclass(frozen=True, kw_only=True)
class Learned:
    """What was found."""

    samples: int = 0
    classes: int = 0
    commit: int = 0
    clients: int = 0


def check(connection: Connection, model: ModelRow, store: Bytes, report: Report) -> Learned:
    """Everything that a commit writes."""
    where = f"model {model.name}"
    try:
        spec = parse(model.declaration).spec
    except EverlearnError as error:
        report.damage(where, f"its declaration cannot be read: {error.message}")
        spec = None
    row = connection.execute(select(memory).where(memory.c.model == model.name)).one_or_none()
    clients = _streams(connection, model, report)
    _commits(connection, model, row, report)
    _operations(connection, model, report)
    if row is None:
        return Learned(clients=clients)
    data = store.of_row(row.digest, row.content, report, f"{where}, memory")
    inspected = _memory(row, model, spec, data, report)
    _account(connection, model, inspected, report)
    _tested(row, spec, _erased(connection, model), report, f"{where}, record of tests")
    own_sums.check(connection, model, spec, data if inspected is not None else None, store, report)
    _moments(connection, model, spec, store, report)
    classes = sum(count > 0 for count in inspected.samples_of.values()) if inspected else 0
    return Learned(samples=row.sample_count, classes=classes, commit=row.commit_id, clients=clients)


def _memory(
    row: _AnyRow, model: ModelRow, spec: ModelSpec | None, data: bytes | None, report: Report
) -> Inspected | None:
    where = f"model {model.name}, memory"
    if row.lineage != model.lineage:
        report.damage(where, f"it is of lineage {row.lineage}, and the model of {model.lineage}")
    if data is None:
        return None
    if len(data) != row.size:
        report.damage(where, f"it has {len(data)} bytes, and the row says {row.size}")
    if spec is None:
        return None
    try:
        inspected = inspect(spec, data)
    except EverlearnError as error:
        report.damage(where, error.message)
        return None
    report.damage(where, inspected.broken)
    if inspected.samples != row.sample_count:
        report.damage(where, f"it has {inspected.samples} samples, and the row says {row.sample_count}")
    return inspected


def _account(connection: Connection, model: ModelRow, inspected: Inspected | None, report: Report) -> None:
    """A release without its row would be noise spent on people and charged to nobody."""
    columns = privacy_spend.c
    chosen = select(columns.releases).where(
        columns.model == model.name, columns.lineage == model.lineage, columns.client == ""
    )
    charged = connection.scalar(chosen) or 0
    if inspected is not None and inspected.releases != charged:
        told = f"{inspected.releases} releases are in the memory, and {charged} were charged to the budget"
        report.damage(f"model {model.name}, account of privacy", told)


def _erased(connection: Connection, model: ModelRow) -> int:
    chosen = select(func.sum(erasure.c.sample_count)).where(erasure.c.model == model.name)
    return int(connection.scalar(chosen) or 0)


def _moments(connection: Connection, model: ModelRow, spec: ModelSpec | None, store: Bytes, report: Report) -> None:
    """Earlier states, which an erasure may go back to."""
    for row in connection.execute(select(moment).where(moment.c.model == model.name)):
        where = f"model {model.name}, state of commit {row.commit_id}"
        if row.lineage != model.lineage:
            report.damage(where, f"it is of lineage {row.lineage}, and the model of {model.lineage}")
        data = store.of_row(row.digest, row.content, report, where)
        if data is None or spec is None:
            continue
        try:
            inspected = inspect(spec, data)
        except EverlearnError as error:
            report.damage(where, error.message)
            continue
        report.damage(where, inspected.broken)
        if inspected.samples != row.sample_count:
            report.damage(where, f"it has {inspected.samples} samples, and the row says {row.sample_count}")


def _tested(row: _AnyRow, spec: ModelSpec | None, erased: int, report: Report, where: str) -> None:
    """Each sample is tested once before it is learned; one that was erased stays counted as tested."""
    if spec is None or spec.privacy.tier == "dp":
        return
    try:
        tested = record_for(spec.task, json.loads(row.prequential_json)).tested
    except (DataLossError, ValueError, KeyError) as error:
        report.damage(where, f"it cannot be read: {error}")
        return
    if not 0 <= tested - row.sample_count <= erased:
        report.damage(where, f"{tested} samples were tested, and {row.sample_count} learned")


def _streams(connection: Connection, model: ModelRow, report: Report) -> int:
    rows = connection.execute(select(stream).where(stream.c.model == model.name)).all()
    newest = connection.scalar(select(func.max(commit_log.c.id)).where(commit_log.c.model == model.name)) or 0
    durable = {}
    for row in rows:
        durable[row.client] = row.durable_sequence
        where = f"model {model.name}, client {row.client}"
        if row.epoch < 1 or row.durable_sequence < 0 or row.sample_count < 0:
            told = (
                f"epoch {row.epoch}, durable sequence {row.durable_sequence} and {row.sample_count} samples cannot be"
            )
            report.damage(where, told)
        if row.first_commit is not None and not 0 <= row.first_commit <= newest:
            report.damage(where, f"its first commit is {row.first_commit}, and the last one of all is {newest}")
    moved = connection.scalar(select(func.sum(commit_log.c.stream_count)).where(commit_log.c.model == model.name)) or 0
    if moved > sum(durable.values()):
        report.damage(
            f"model {model.name}, streams",
            f"the commits moved watermarks {moved} times, and they stand at {sum(durable.values())} batches in all",
        )
    refused = connection.execute(select(reject.c.client, reject.c.sequence).where(reject.c.model == model.name)).all()
    beyond = [row for row in refused if not 0 < row.sequence <= durable.get(row.client, 0)]
    if beyond:
        client, sequence = beyond[0]
        report.damage(f"model {model.name}, client {client}", f"batch {sequence} was refused and is not durable")
    if len({(row.client, row.sequence) for row in refused}) < len(refused):
        report.damage(f"model {model.name}, streams", "a batch was refused twice")
    return len(rows)


def _commits(connection: Connection, model: ModelRow, kept: _AnyRow | None, report: Report) -> None:
    where = f"model {model.name}, commits"
    columns = commit_log.c
    chosen = select(commit_log).where(columns.model == model.name).order_by(columns.id)
    log = connection.execute(chosen).all()
    report.damage(where, _broken_links(log))
    newest = log[-1] if log else None
    if kept is None:
        if newest is not None and newest.lineage == model.lineage:
            report.damage(where, f"commit {newest.id} is of lineage {model.lineage}, which has no memory")
        return
    if newest is None or newest.id != kept.commit_id:
        report.damage(where, f"the memory is of commit {kept.commit_id}, the last one is {newest.id if newest else 0}")
        return
    if (newest.memory_digest, newest.sample_count) != (kept.digest, kept.sample_count):
        report.damage(where, f"commit {newest.id} wrote another memory than the one that is there")


def _broken_links(log: Sequence[_AnyRow]) -> list[str]:
    """A commit names the one before it, unless it begins a lineage."""
    broken = []
    if len(log) < COMMITS_KEPT and log and log[0].parent is not None:
        broken.append(f"commit {log[0].id} follows {log[0].parent}, which is not there")
    for before, after in pairwise(log):
        if after.lineage < before.lineage:
            broken.append(f"commit {after.id} goes back to lineage {after.lineage}")
        expected = before.id if after.lineage == before.lineage else None
        if after.parent != expected:
            broken.append(f"commit {after.id} follows {after.parent}; it must follow {expected}")
    return broken


def _operations(connection: Connection, model: ModelRow, report: Report) -> None:
    for row in connection.execute(select(operation).where(operation.c.model == model.name)):
        try:
            for told in (row.request_json, row.error_json, row.result_json):
                json.loads(told or "{}")
        except ValueError:
            report.damage(f"model {model.name}, {row.name}", "what it was asked or found cannot be read")
