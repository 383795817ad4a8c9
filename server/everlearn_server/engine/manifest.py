"""What an export is, in words that are signed: a device checks them with the one key that it trusts."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Final

from everlearn_server.engine.precisions import export_id
from everlearn_server.store.rows import ExportRow

KIND: Final = "everlearn export manifest 1"
"""Nothing else that is signed begins like it."""


POINTER_KIND: Final = "everlearn alias 1"


def pointer(row: ExportRow, alias: str, moved: int) -> bytes:
    """JSON: the alias named this export's version. `moved`: number of the move that brought it there."""
    told = {
        "kind": POINTER_KIND,
        "model": f"models/{row.model}",
        "alias": alias,
        "version": f"models/{row.model}/versions/{row.version_number}",
        "number": moved,
    }
    return json.dumps(told, sort_keys=True).encode()


def manifest(row: ExportRow) -> bytes:
    """JSON; equal for equal rows."""
    told = {
        "kind": KIND,
        "export": f"models/{row.model}/exports/{export_id(row)}",
        "version": f"models/{row.model}/versions/{row.version_number}",
        "precision": row.precision,
        "create_time": datetime.fromtimestamp(row.create_time_s, UTC).isoformat(timespec="seconds"),
        "files": {file.file_name: {"size_bytes": file.size, "sha256": file.sha256} for file in row.files},
    }
    return json.dumps(told, sort_keys=True).encode()
