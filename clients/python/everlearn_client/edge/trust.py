"""Whose models run on this device: those that one server has signed, whoever may answer under its address.

Of the server's keys only one is trusted at a time. Where it has given way to others, each vouched for by the one before
it, the device follows, writes the last one down, and trusts none of the earlier ones again.

What was signed once stays signed: who keeps an old answer could offer it again. So each move of an alias has a number,
larger than that of the move before, back to an earlier version too, and the device takes none that it has gone beyond.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from everlearn_client import _ed25519
from everlearn_client.client import Client
from everlearn_client.edge.durable_files import read_twice, write_twice
from everlearn_client.errors import DataLoss, InvalidArgument
from everlearn_client.key_chain import descendants
from everlearn_client.results import ExportInfo

_KIND: Final = "everlearn export manifest 1"
_POINTER_KIND: Final = "everlearn alias 1"
_RECORD: Final = "server_key"


@dataclass(frozen=True, kw_only=True)
class TrustRecord:
    """What the device knows of its server, for good."""

    key: str = ""
    """Hex; empty before the first server was met."""
    earlier: tuple[str, ...] = ()
    """Keys that gave way to it, in order; not trusted any more."""
    seen: dict[str, tuple[int, str]] = field(default_factory=dict)
    """Alias -> number of its last move that was seen, and the version that it brought."""
    generation: int = 0


class Trust:
    """The key that the device trusts: the one it was given, or else the first it met, and what came of it since."""

    def __init__(self, folder: Path, *, key: str = "") -> None:
        """`key`: 64 hexadecimal digits, as `everlearn info` shows them: the server's present one, or an earlier one
        that the present one came from. Raises InvalidArgument for one that is none."""
        self._folder, self._given = folder, _key_of(key)
        told, _ = read_twice(folder, _RECORD)
        self._record = TrustRecord() if told is None else _record_of(told)

    @property
    def key(self) -> str:
        """That is trusted now, in hex; empty before the first server was met."""
        return self._record.key or self._given

    def check(self, export: ExportInfo, client: Client, *, alias: str = "") -> None:
        """Raises DataLoss for an export that the trusted server has not signed, file by file; or, where it was asked
        for by an alias, did not sign as where that alias points now, as far as this device has seen it move."""
        if not self.key:
            self._write(key=_key_of(client.info().public_key, told_by_server=True))
        self._follow(export)
        if not _ed25519.is_signed(export.manifest, export.signature, bytes.fromhex(self.key)):
            raise DataLoss(f"{export.name} is not signed by the server that this device trusts ({self.key})")
        told = json.loads(export.manifest)
        signed = {name: (file["size_bytes"], file["sha256"]) for name, file in told["files"].items()}
        offered = {file.file_name: (file.size_bytes, file.sha256) for file in export.files}
        named = (told["kind"], told["export"], told["version"])
        if named != (_KIND, export.name, export.version) or signed != offered:
            raise DataLoss(f"{export.name}: what is offered is not what was signed")
        if alias:
            self._check_move(export, alias)

    def _check_move(self, export: ExportInfo, alias: str) -> None:
        """Of equal numbers the version must be the same, or the number would not say which is newer."""
        if not _ed25519.is_signed(export.pointer, export.pointer_signature, bytes.fromhex(self.key)):
            raise DataLoss(f"{export.version}: the server that this device trusts has not signed that it is {alias}")
        told = json.loads(export.pointer)
        model, _, _ = export.version.partition("/versions/")
        named = tuple(told.get(name) for name in ("kind", "model", "alias", "version"))
        if named != (_POINTER_KIND, model, alias, export.version):
            raise DataLoss(f"{export.version}: what was signed is not that it is {alias}")
        number, (seen, version) = int(told["number"]), self._record.seen.get(alias, (-1, ""))
        if number < seen or (number == seen and export.version != version):
            raise DataLoss(
                f"{export.version} was {alias} once (move {number}), and this device has seen {version} since (move "
                f"{seen}): an old answer is offered, or the server's data were copied back without `restore`"
            )
        if alias == "canary" and number < self._record.seen.get("stable", (-1, ""))[0]:
            raise DataLoss(f"{export.version} was a canary before `stable` moved last: an old answer is offered")
        if number > seen:
            self._write(seen={**self._record.seen, alias: (number, export.version)})

    def _follow(self, export: ExportInfo) -> None:
        """To the last key that the trusted one has vouched for; durable before anything is trusted by it."""
        known = self._record
        found = [each.hex() for each in descendants(bytes.fromhex(self.key), export.key_rotations)]
        line = [*known.earlier, self.key, *found]
        if set(known.earlier) & set(found):
            raise DataLoss("the server's key gave way to one that this device trusts no more")
        if self._given and self._given not in line:
            raise DataLoss(
                f"this device trusts the server with the key {self.key}, and is to trust {self._given}, which did not "
                f"come from it; if that is meant, remove {_RECORD}.0 and {_RECORD}.1 in {self._folder}"
            )
        if found:
            self._write(key=line[-1], earlier=tuple(line[:-1]))

    def _write(self, **changes: object) -> None:
        record = replace(self._record, generation=self._record.generation + 1, **changes)  # type: ignore[arg-type]  # its fields
        write_twice(self._folder, _RECORD, asdict(record))
        self._record = record


def _record_of(told: dict[str, Any]) -> TrustRecord:
    """Of an earlier release, too, which knew nothing but the key."""
    seen = {alias: (int(number), str(version)) for alias, (number, version) in told.get("seen", {}).items()}
    return TrustRecord(
        key=told["key"], earlier=tuple(told.get("earlier", ())), seen=seen, generation=int(told["generation"])
    )


def _key_of(key: str, *, told_by_server: bool = False) -> str:
    """In lower case. Empty stays empty, unless a server tells it."""
    try:
        found = bytes.fromhex(key)
    except ValueError:
        found = b"?"
    if told_by_server and not found:
        raise DataLoss("the server tells no key that its exports are signed with")
    if len(found) not in (0, 32):
        raise InvalidArgument("a server's key has 64 hexadecimal digits", field="server_key")
    return found.hex()
