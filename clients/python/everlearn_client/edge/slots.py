"""Two places on the device's disk for a model: one that runs, one for the version before it or the next.

slots.0 · slots.1 (the record, twice: either may rot)    a/ b/ (model.onnx, probes.npz, ...)

A slot counts only by the record, which is written after its files are whole, verified and tried: what was half
downloaded is never run. A version that has not proved itself yet is on trial: each start of the program is counted
before the model is touched, and where it has started too often without having been confirmed, the version before it
comes back, and this one is never taken again.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Final

from everlearn_client.edge.durable_files import read_twice, write_twice
from everlearn_client.results import ExportFile, ExportInfo

_RECORD: Final = "slots"
NAMES: Final = ("a", "b")
BAD_KEPT: Final = 32
TOLD: Final = 16


@dataclass(frozen=True, kw_only=True)
class Slot:
    """What lies in one of them."""

    version: str
    """`models/{model}/versions/{number}`."""
    files: tuple[tuple[str, int, str], ...]
    """Name, bytes, sha256."""

    @classmethod
    def of(cls, export: ExportInfo) -> Slot:
        """What will lie there once an export has been downloaded."""
        return cls(
            version=export.version, files=tuple((each.file_name, each.size_bytes, each.sha256) for each in export.files)
        )

    @property
    def digest(self) -> str:
        """sha256 of the model's file: which version, whatever its number."""
        return next((sha256 for name, _, sha256 in self.files if name == "model.onnx"), "")


@dataclass(frozen=True, kw_only=True)
class SlotRecord:
    """Which slot runs, and what is known of both."""

    slots: dict[str, Slot] = field(default_factory=dict)
    active: str = ""
    trial: bool = False
    """The active one has not been confirmed."""
    starts: int = 0
    """Of the program, with the active one on trial."""
    bad: tuple[str, ...] = ()
    """Digests of versions that failed here; the newest BAD_KEPT."""
    given_up: tuple[tuple[str, str], ...] = ()
    """Their names, each with why, as everlearn.v1.GivenUp.Why has it; the newest TOLD."""
    generation: int = 0


class Slots:
    """The folder of them. One process at a time."""

    def __init__(self, folder: Path, *, max_starts: int = 3) -> None:
        """Reads the record and counts the start. Raises OSError."""
        self._folder, self._max_starts = folder, max_starts
        for name in NAMES:
            (folder / name).mkdir(parents=True, exist_ok=True)
        self.record = _read(folder)
        self.rolled_back = ""
        """Why the version that was active is not any more, found at this start."""
        if self.record.trial:
            self._write(starts=self.record.starts + 1)
            if self.record.starts > max_starts:
                self.give_up(f"it was started {max_starts} times and never confirmed", reason="CRASH_LOOP")

    @property
    def active(self) -> Slot | None:
        """What is to run; None where there is nothing."""
        return self.record.slots.get(self.record.active)

    @property
    def before(self) -> Slot | None:
        """What a version on trial would fall back to; None where nothing lies there."""
        return self.record.slots.get(self.spare)

    @property
    def folder(self) -> Path:
        """Of the active one."""
        return self._folder / self.record.active

    @property
    def spare(self) -> str:
        """The slot that may be overwritten; not while the active one is on trial and needs it."""
        return NAMES[1] if self.record.active == NAMES[0] else NAMES[0]

    def spare_folder(self) -> Path:
        """Of the spare one, where a download may go on over restarts."""
        return self._folder / self.spare

    def is_bad(self, digest: str) -> bool:
        """Whether this version has failed here."""
        return digest in self.record.bad

    def is_intact(self, name: str) -> bool:
        """Whether every file of a slot is what it was, byte for byte."""
        slot = self.record.slots.get(name)
        return slot is not None and all(_matches(self._folder / name, *file) for file in slot.files)

    def clear_spare(self, keep: Slot) -> None:
        """The spare slot counts for nothing from here on. Files of `keep`, and begun ones of it, stay."""
        slots = {name: slot for name, slot in self.record.slots.items() if name != self.spare}
        self._write(slots=slots)
        begun = tuple(f"{name}.{sha256[:16]}." for name, _, sha256 in keep.files)
        for path in self.spare_folder().iterdir():
            if path.name not in {name for name, _, _ in keep.files} and not path.name.startswith(begun):
                path.unlink()

    def activate(self, slot: Slot) -> None:
        """The spare slot holds this version, verified and tried: it runs from here on, on trial if there is another."""
        known = {**self.record.slots, self.spare: slot}
        self._write(slots=known, active=self.spare, trial=len(known) > 1, starts=1)

    def confirm(self) -> None:
        """The active version has proved itself: the other slot may be overwritten."""
        if self.record.trial:
            self._write(trial=False, starts=0)

    def refuse(self, slot: Slot, reason: str) -> None:
        """This version failed before it was active: it is not taken again. `reason`: as of `give_up`."""
        self._write(bad=(*self.record.bad, slot.digest)[-BAD_KEPT:], given_up=self._told(slot, reason))

    def give_up(self, why: str, *, reason: str = "") -> None:
        """The active version failed: the other one comes back, if it is intact. `reason`: as everlearn.v1.GivenUp.Why
        has it; empty where this version may be taken again, since it is not to blame."""
        failed, other = self.active, self.spare
        digest = failed.digest if failed is not None else ""
        kept = {other: self.record.slots[other]} if self.is_intact(other) else {}
        self.rolled_back = f"{failed.version if failed is not None else 'nothing'}: {why}"
        bad = (*self.record.bad, digest)[-BAD_KEPT:] if reason else self.record.bad
        told = self._told(failed, reason) if failed is not None and reason else self.record.given_up
        self._write(slots=kept, active=other if kept else "", trial=False, starts=0, bad=bad, given_up=told)

    def _told(self, slot: Slot, reason: str) -> tuple[tuple[str, str], ...]:
        return (*self.record.given_up, (slot.version, reason))[-TOLD:]

    def _write(self, **changes: object) -> None:
        self.record = replace(self.record, generation=self.record.generation + 1, **changes)  # type: ignore[arg-type]  # its fields
        write_twice(self._folder, _RECORD, asdict(self.record))


def missing(slot: Slot, folder: Path) -> list[ExportFile]:
    """Files of a version that are not there whole."""
    return [ExportFile(*file) for file in slot.files if not _matches(folder, *file)]


def _matches(folder: Path, name: str, size_bytes: int, sha256: str) -> bool:
    path = folder / name
    if Path(name).name != name or not path.is_file() or path.stat().st_size != size_bytes:
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == sha256


def _read(folder: Path) -> SlotRecord:
    """The newest whole record; an empty one where there is none: then a model is pulled anew."""
    told, _ = read_twice(folder, _RECORD)
    if told is None:
        return SlotRecord()
    told["slots"] = {
        which: Slot(version=slot["version"], files=tuple((n, s, d) for n, s, d in slot["files"]))
        for which, slot in told["slots"].items()
    }
    told["bad"] = tuple(told["bad"])
    told["given_up"] = tuple((version, reason) for version, reason in told.get("given_up", ()))
    return SlotRecord(**told)
