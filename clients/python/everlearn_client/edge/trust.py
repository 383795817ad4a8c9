"""Whose models run on this device: those that one server has signed, whoever may answer under its address."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from everlearn_client import _ed25519
from everlearn_client.client import Client
from everlearn_client.edge.durable_files import read_twice, write_twice
from everlearn_client.errors import DataLoss, InvalidArgument
from everlearn_client.results import ExportInfo

_KIND: Final = "everlearn export manifest 1"
_RECORD: Final = "server_key"


class Trust:
    """The key that the device trusts: the one it was given, or else the first it met, which is kept for good."""

    def __init__(self, folder: Path, *, key: str = "") -> None:
        """`key`: 64 hexadecimal digits, as `everlearn info` shows them. Raises InvalidArgument for one that is none, or
        is not the one that the folder has known."""
        self._folder, self._key = folder, _bytes_of(key)
        told, _ = read_twice(folder, _RECORD)
        known = bytes.fromhex(told["key"]) if told is not None else b""
        if key and known and known != self._key:
            raise InvalidArgument(
                f"{folder} trusts the server with the key {known.hex()}, not {key}", field="server_key"
            )
        self._key = self._key or known

    def check(self, export: ExportInfo, client: Client) -> None:
        """Raises DataLoss for an export that the trusted server has not signed, file by file."""
        if not self._key:
            self._meet(client)
        if not _ed25519.is_signed(export.manifest, export.signature, self._key):
            raise DataLoss(f"{export.name} is not signed by the server that this device trusts ({self._key.hex()})")
        told = json.loads(export.manifest)
        signed = {name: (file["size_bytes"], file["sha256"]) for name, file in told["files"].items()}
        offered = {file.file_name: (file.size_bytes, file.sha256) for file in export.files}
        named = (told["kind"], told["export"], told["version"])
        if named != (_KIND, export.name, export.version) or signed != offered:
            raise DataLoss(f"{export.name}: what is offered is not what was signed")

    def _meet(self, client: Client) -> None:
        self._key = _bytes_of(client.info().public_key)
        if not self._key:
            raise DataLoss("the server tells no key that its exports are signed with")
        write_twice(self._folder, _RECORD, {"generation": 1, "key": self._key.hex()})


def _bytes_of(key: str) -> bytes:
    try:
        found = bytes.fromhex(key)
    except ValueError:
        found = b"?"
    if len(found) not in (0, 32):
        raise InvalidArgument("a server's key has 64 hexadecimal digits", field="server_key")
    return found
