"""Differences beside an export, as plain files: for whoever pulls from a web server, which cannot be asked for them.

model.onnx.3f2a9c1b7d004e55-81d0c7f2a6b3944e.delta    from the one sha256 to the other, their first 16 digits
model.updates.json                                    which there are

Nobody signs them: what comes of them has to be what the signed manifest says.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Final

from everlearn_client.errors import InvalidArgument
from everlearn_client.results import ExportInfo

UPDATES_FILE: Final = "model.updates.json"
KIND: Final = "everlearn export updates 1"
_OF: Final = ("model.onnx", "probes.npz")
"""Files of an export that a device needs."""


class Earlier:
    """What somebody has already: read at once, for the folder may be the one that is written to."""

    def __init__(self, folder: Path) -> None:
        """Raises InvalidArgument where there is no export."""
        if not (folder / _OF[0]).is_file():
            raise InvalidArgument(
                f"there is no {_OF[0]} in {folder}, so no export to differ from", field="difference_from"
            )
        self.files = {name: (folder / name).read_bytes() for name in _OF if (folder / name).is_file()}


def write_differences(folder: Path, export: ExportInfo, earlier: list[Earlier]) -> None:
    """From each of the earlier ones to the export in `folder`, where that is less than the file; and the list, of these
    and no others. Without any, a list that lies there is deleted. Raises InvalidArgument without zstandard."""
    if not earlier:
        (folder / UPDATES_FILE).unlink(missing_ok=True)
        return
    told = []
    for file in export.files:
        bases = {hashlib.sha256(data).hexdigest(): data for each in earlier if (data := each.files.get(file.file_name))}
        for base_sha256, base in bases.items():
            if file.file_name not in _OF or base_sha256 == file.sha256:
                continue
            delta = _encode(base, (folder / file.file_name).read_bytes())
            if len(delta) >= file.size_bytes:
                continue
            name = f"{file.file_name}.{base_sha256[:16]}-{file.sha256[:16]}.delta"
            (folder / name).write_bytes(delta)
            told.append(
                {
                    "of": file.file_name,
                    "base_sha256": base_sha256,
                    "target_sha256": file.sha256,
                    "file": name,
                    "size_bytes": len(delta),
                    "sha256": hashlib.sha256(delta).hexdigest(),
                }
            )
    (folder / UPDATES_FILE).write_text(json.dumps({"kind": KIND, "differences": told}, indent=1), "utf-8")


def _encode(base: bytes, target: bytes) -> bytes:
    try:
        from everlearn_protos.delta.encoding import encode
    except ImportError as error:
        raise InvalidArgument(
            f"differences need {error.name}; `pip install 'everlearn[edge]'` brings it", field="difference_from"
        ) from None
    return encode(base, target)
