"""A real server process on its embedded default: SQLite, a local folder, a free loopback port."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

_START_TIMEOUT_S = 60.0


class LocalServer:
    """Started on entry, stopped on exit; `restart` stops it as an operator would and starts it on the same folder."""

    def __init__(self, data: Path) -> None:
        self._data = data
        self._ready = data.with_suffix(".ready")
        self._log = data.with_suffix(".log")
        self.address = ""

    def __enter__(self) -> Self:
        self._start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def restart(self) -> None:
        """Stops the process and starts another; the address changes."""
        self._stop()
        self._start()

    def _start(self) -> None:
        self._ready.unlink(missing_ok=True)
        command = [sys.executable, "-m", "everlearn_server.cli", "--listen", "127.0.0.1:0", "--data", str(self._data)]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*command, "--ready-file", str(self._ready)], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        give_up_s = time.monotonic() + _START_TIMEOUT_S
        while not self._ready.exists():
            if self._process.poll() is not None or time.monotonic() > give_up_s:
                raise SystemExit(f"the server did not start:\n{self._log.read_text()[-2000:]}")
            time.sleep(0.02)
        self.address = json.loads(self._ready.read_text())["address"]

    def _stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
