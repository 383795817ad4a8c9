"""Brings new versions of a model onto the device: downloaded whole, verified, tried, and only then switched to."""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

from everlearn_client.client import Client
from everlearn_client.edge.health import CheckIn, HealthLog, Wanted
from everlearn_client.edge.session import PROBES_FILE, EdgeSession
from everlearn_client.edge.slots import Slot, Slots, missing
from everlearn_client.edge.trust import Trust
from everlearn_client.errors import DataLoss
from everlearn_client.resource_names import version_name
from everlearn_client.results import ExportInfo

MODEL_FILE: Final = "model.onnx"
_NEEDED: Final = (MODEL_FILE, PROBES_FILE, "tokenizer.json")
"""Of an export's files; the card is for people."""

logger = logging.getLogger(__name__)


class Follower:
    """The slots of one model, and the session that runs. `session` is one reference: whoever has read it may go on."""

    def __init__(
        self,
        folder: Path,
        *,
        model: str,
        version: str | int = "stable",
        max_starts: int = 3,
        threads: int = 1,
        with_features: bool = False,
        retry_for_s: float = 60.0,
        precision: str = "",
        server_key: str = "",
        on_switch: Callable[[str, str], None] | None = None,
        labels: Mapping[str, str] | None = None,
        health: HealthLog | None = None,
    ) -> None:
        """Takes up what lies there; offline, too. `with_features`: as EdgeSession. `server_key`: as Trust. `on_switch`
        hears of a version that runs from now on, and why. `labels`, `health`: what the server is told with each
        question. Raises InvalidArgument for labels that are none."""
        self._model, self._version = model, version
        self._open = partial(EdgeSession, threads=threads, with_features=with_features)
        self._precision = precision
        self._retry_for_s = retry_for_s
        self._on_switch = on_switch or (lambda version, why: None)
        self._check_in = CheckIn(
            model,
            version,
            labels=labels or {},
            log=health or HealthLog(),
            running=lambda: self.session.version if self.session is not None else 0,
            given_up=lambda: self.given_up,
        )
        self._trust = Trust(folder, key=server_key)
        self._slots = Slots(folder, max_starts=max_starts)
        self.session: EdgeSession | None = None
        self._passed_over = ""
        """The version that was wanted last, and is not to be taken."""
        if self._slots.rolled_back:
            logger.warning("rolled back: %s", self._slots.rolled_back)
        self._load()

    @property
    def on_trial(self) -> bool:
        """Whether the version that runs has not been confirmed."""
        return self._slots.record.trial

    @property
    def rolled_back(self) -> str:
        """Which version was given up, and why; empty where none was since the start."""
        return self._slots.rolled_back

    @property
    def given_up(self) -> list[tuple[int, str]]:
        """Numbers of versions that are not taken any more here, each with why; the newest."""
        return [(int(version.rpartition("/")[2]), reason) for version, reason in self._slots.record.given_up]

    @property
    def version(self) -> str:
        """`models/{model}/versions/{number}` that runs; empty where none does."""
        session = self.session  # not of the record, which is written a moment before the session is exchanged
        return "" if session is None else version_name(session.model, session.version)

    @property
    def precision(self) -> str:
        """Of the version that runs; empty where none does."""
        session = self.session
        return "" if session is None else session.precision

    def confirm(self) -> None:
        """The version that runs has proved itself."""
        self._slots.confirm()

    def pull(self, client: Client) -> bool:
        """Switches to the version that is wanted, if it is another. Returns whether it did. Of what the running version
        shares with it nothing is downloaded again.

        A version that fails its self-test here is remembered and not taken again. Nothing is pulled while a version is
        on trial: the slot before it is what it would fall back to, and does where the server wants that. Raises the
        client's errors, DataLoss.
        """
        found = self._check_in(client)
        if self.on_trial:
            return self._goes_back(client, found)
        if not self._is_new(found.number):
            return False
        export = self._offered(client, "canary" if found.canary else self._version)
        wanted = _needed(export)
        slot = Slot.of(wanted)
        current = self._slots.active
        if (current is not None and current.digest == slot.digest) or self._slots.is_bad(slot.digest):
            self._passed_over = slot.version
            return False
        self._slots.clear_spare(slot)
        folder = self._slots.spare_folder()
        todo = missing(slot, folder)
        if todo:
            base = self._slots.folder if current is not None else None
            client.download(replace(wanted, files=tuple(todo)), folder, base=base, retry_for_s=self._retry_for_s)
        session = self._tried(slot, folder)
        self._slots.activate(slot)
        self.session = session
        _give_back()
        self._on_switch(slot.version, "pulled")
        return True

    def _offered(self, client: Client, version: str | int) -> ExportInfo:
        """As the server that is trusted has signed it; by the name of an alias, as its last move."""
        export = client.export(self._model, version, precision=self._precision)
        self._trust.check(export, client, alias=version if isinstance(version, str) else "")
        return export

    def _goes_back(self, client: Client, found: Wanted) -> bool:
        """From a version on trial that the server wants no more, to the one before it, which lies here."""
        before = self._slots.before
        is_wanted = before is not None and before.version == version_name(self._model, found.number or 1)
        if before is None or not (is_wanted or found.withdrawn):
            return False
        offered = self._offered(client, self._version).version  # for what was asked first is not signed
        if offered == self.version or not (offered == before.version or found.withdrawn):
            return False
        self._slots.give_up("the server wants it no more")
        self.session = None
        self._load()
        return True

    def _is_new(self, number: int) -> bool:
        """A cheap question first: an export that is asked for is made, or read again from end to end."""
        wanted = version_name(self._model, number) if number else ""
        session = self.session
        is_other = session is not None and self._precision not in ("", session.precision)
        if is_other and wanted != self._passed_over:
            return True  # of the same version, maybe
        return not wanted or wanted not in (self.version, self._passed_over)

    def _tried(self, slot: Slot, folder: Path) -> EdgeSession:
        try:
            session = self._open(folder / MODEL_FILE)
            if any(name == PROBES_FILE for name, _, _ in slot.files):
                session.self_test(folder / PROBES_FILE)
        except DataLoss as error:
            self._slots.refuse(slot, "SELF_TEST")
            logger.warning("%s is not used: %s", slot.version, error)
            raise
        return session

    def _load(self) -> None:
        """The active version or, where it has rotted or does not run, the one before it."""
        while (slot := self._slots.active) is not None:
            if not self._slots.is_intact(self._slots.record.active):
                logger.warning("%s is given up: its files are not what they were", slot.version)
                self._slots.give_up("its files are not what they were")
                continue
            try:
                self.session = self._open(self._slots.folder / MODEL_FILE)
            except DataLoss as error:
                logger.warning("%s is given up: %s", slot.version, error)
                self._slots.give_up(error.message, reason="DOES_NOT_RUN")
                continue
            self._on_switch(slot.version, self._slots.rolled_back or "started")
            return


def _give_back() -> None:
    """An update holds a version as bytes two or three times over; glibc would keep the room for the next one."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _needed(export: ExportInfo) -> ExportInfo:
    return replace(export, files=tuple(file for file in export.files if file.file_name in _NEEDED))
