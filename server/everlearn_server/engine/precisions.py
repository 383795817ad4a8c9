"""An export in several precisions: one row of the catalog, the files of each precision in a folder of their own.

    model.onnx  MODEL_CARD.md  probes.npz          fp32, as it has always been
    fp16/model.onnx  fp16/MODEL_CARD.md  ...  fp16/export.json

Everywhere else an export is of one precision and its files have their own names. What the row's columns say of fp32 is
in `export.json` for the others, a file that leaves with them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Final

import structlog

from everlearn.errors import EverlearnError
from everlearn.export.precision import PRECISIONS, Precision
from everlearn_server.store.blobs import Blobs
from everlearn_server.store.rows import ExportRow

RECORD_FILE: Final = "export.json"
_OWN: Final[Precision] = "fp32"

_logger = structlog.get_logger(__name__)


def export_id(row: ExportRow) -> str:
    """The last part of its resource name: the version's number, and the precision where it is not the server's."""
    return str(row.version_number) if row.precision == _OWN else f"{row.version_number}-{row.precision}"


def record(row: ExportRow, told: dict[str, Any]) -> bytes:
    """The `export.json` of an export without it; `told`: what its row has no place for."""
    columns = {"parity_max_abs_diff": row.parity, "probes": row.probes, "create_time_s": row.create_time_s}
    return json.dumps({"precision": row.precision, **columns, **told}, sort_keys=True, indent=1).encode()


def joined(stored: ExportRow | None, made: ExportRow) -> ExportRow:
    """What the catalog is to have where it has `stored`, and `made` in one precision has been released."""
    files = tuple(replace(file, file_name=_prefix(made.precision) + file.file_name) for file in made.files)
    if stored is None:
        return replace(made, files=files, precision=_OWN)
    others = tuple(file for file in stored.files if _split(file.file_name)[0] != made.precision)
    # The columns are of fp32 wherever there is one.
    columns = stored if made.precision != _OWN else made
    return replace(columns, files=(*others, *files), precision=_OWN)


async def exports_of(stored: Iterable[ExportRow], blobs: Blobs) -> list[ExportRow]:
    """One row for each precision of what the catalog has. One whose record is damaged is as good as not there: it is
    made anew when it is asked for."""
    found = []
    for row in stored:
        for precision in PRECISIONS:
            names = (_split(file.file_name) for file in row.files)
            pairs = [(name, file) for (of, name), file in zip(names, row.files, strict=True) if of == precision]
            files = tuple(replace(file, file_name=name) for name, file in pairs)
            one = replace(row, files=files, precision=precision)
            read = one if precision == _OWN else await _told(one, blobs)
            if files and read is not None:
                found.append(read)
    return found


async def _told(row: ExportRow, blobs: Blobs) -> ExportRow | None:
    digest = next((file.sha256 for file in row.files if file.file_name == RECORD_FILE), None)
    if digest is None:
        return None
    try:
        told = json.loads(await blobs.get(digest))
        parity, probes = float(told["parity_max_abs_diff"]), int(told["probes"])
        return replace(row, parity=parity, probes=probes, create_time_s=float(told["create_time_s"]))
    except (EverlearnError, ValueError, KeyError, TypeError) as error:
        _logger.warning("the record of an export is damaged", model=row.model, export=export_id(row), error=str(error))
        return None


def sizes(rows: Sequence[ExportRow], file_name: str) -> dict[str, int]:
    """sha256 -> bytes of all files of that name."""
    return {file.sha256: file.size for row in rows for file in row.files if file.file_name == file_name}


def _prefix(precision: Precision) -> str:
    return "" if precision == _OWN else f"{precision}/"


def _split(stored_name: str) -> tuple[str, str]:
    """Precision and own name of a file."""
    precision, slash, name = stored_name.partition("/")
    return (precision, name) if slash else (_OWN, stored_name)
