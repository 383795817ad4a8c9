"""What a model has released: versions, aliases, exports; and the trunks that models share."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sqlalchemy import Connection, Row, select

from everlearn.errors import DataLossError
from everlearn_server.check.findings import Report
from everlearn_server.engine.head_file import load_head
from everlearn_server.store.keys import Keys
from everlearn_server.store.rows import ModelRow
from everlearn_server.store.schema import alias, export, export_file, promotion, trunk, version
from everlearn_server.store.schema import model as model_table

_AnyRow = Row[*tuple[object, ...]]


@dataclass(frozen=True, kw_only=True)
class Bytes:
    """Blobs that are intact."""

    folder: Path
    intact: Collection[str]
    keys: Keys | None = None
    """The folder's, where they are there."""

    def of_row(self, digest: str, inline: bytes | None, report: Report, where: str) -> bytes | None:
        """What a row keeps, itself or as a blob; None, and a finding, where that is damaged."""
        if inline is not None:
            if hashlib.sha256(inline).hexdigest() == digest:
                return inline
            report.damage(where, "its bytes do not match their digest; restore a backup")
            return None
        if digest in self.intact:
            return (self.folder / "blobs" / "sha256" / digest[:2] / digest).read_bytes()
        report.damage(where, f"its blob {digest} is missing or damaged; restore a backup")
        return None

    def expect(self, digest: str, size: int, report: Report, where: str) -> None:
        """A blob that must be intact and of this size."""
        if digest not in self.intact:
            report.damage(where, f"its blob {digest} is missing or damaged")
            return
        found = (self.folder / "blobs" / "sha256" / digest[:2] / digest).stat().st_size
        if found != size:
            report.damage(where, f"its blob {digest} has {found} bytes, and the row says {size}")


def trunks(connection: Connection, store: Bytes, report: Report) -> None:
    """Each trunk, tail and student is there; who needs one finds it."""
    there = set()
    for row in connection.execute(select(trunk.c.key, trunk.c.digest, trunk.c.source, trunk.c.size)):
        there.add(row.digest)
        store.expect(row.digest, row.size, report, f"trunk of {row.source or row.key}")
    for name, digest in connection.execute(select(model_table.c.name, model_table.c.trunk_digest)):
        if digest is not None and digest not in there:
            report.damage(f"model {name}", f"there is no trunk {digest}; apply its declaration again")


def versions(connection: Connection, model: ModelRow, store: Bytes, report: Report) -> int:
    """Heads that can be served, and aliases that point to some of them; how many there are."""
    following = connection.scalar(select(model_table.c.next_version).where(model_table.c.name == model.name)) or 0
    rows = connection.execute(select(version).where(version.c.model == model.name).order_by(version.c.number)).all()
    for row in rows:
        where = f"model {model.name}, version {row.number}"
        if not 0 < row.number < following:
            report.damage(where, f"its number was never given out: the next one is {following}")
        if row.lineage > model.lineage:
            report.damage(where, f"it is of lineage {row.lineage}, and the model of {model.lineage}")
        data = store.of_row(row.head_digest, row.head, report, where)
        if data is not None:
            report.damage(where, _broken_head(data, row))
    passed = {row.number: row.gate_passed for row in rows}
    _aliases(connection, model, passed, report)
    return len(rows)


def _broken_head(data: bytes, row: _AnyRow) -> list[str]:
    try:
        head = load_head(data).head
        labels, metrics = json.loads(row.labels_json), json.loads(row.metrics_json)
    except DataLossError as error:
        return [error.message]
    except ValueError as error:
        return [f"its labels or figures cannot be read: {error}"]
    broken = []
    if list(head.labels) != labels:
        broken.append("its head has other labels than the version")
    if not (np.isfinite(head.weight_dC).all() and np.isfinite(head.bias_C).all()):
        broken.append("a weight is infinite, or none")
    if "feature_digest" not in metrics:
        broken.append("it does not say which features it takes")
    return broken


def _aliases(connection: Connection, model: ModelRow, passed: dict[int, bool], report: Report) -> None:
    for row in connection.execute(select(alias).where(alias.c.model == model.name)):
        where = f"model {model.name}, alias {row.alias}"
        if row.number not in passed:
            report.damage(where, f"it points to version {row.number}, which is not there")
        elif row.alias == "stable" and not passed[row.number]:
            report.damage(where, f"it points to version {row.number}, which did not pass its gate")
        moves = select(promotion.c.number).where(promotion.c.model == model.name, promotion.c.alias == row.alias)
        last = connection.scalars(moves.order_by(promotion.c.id.desc()).limit(1)).one_or_none()
        if last is not None and last != row.number:
            report.damage(where, f"it points to version {row.number}, and was last moved to {last}")


def exports(connection: Connection, model: ModelRow, store: Bytes, report: Report) -> int:
    """Files of each export; how many exports there are."""
    rows = connection.execute(select(export).where(export.c.model == model.name)).all()
    for row in rows:
        where = f"model {model.name}, export of version {row.version_number}"
        owned = export_file.c.model == model.name, export_file.c.version_number == row.version_number
        files = connection.execute(select(export_file).where(*owned).order_by(export_file.c.position)).all()
        if not files or [file.position for file in files] != list(range(len(files))):
            report.damage(where, f"a file of it is missing; it has {len(files)}")
        for file in files:
            store.expect(file.sha256, file.size, report, f"{where}, {file.file_name}")
    return len(rows)
