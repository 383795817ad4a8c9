"""A real everlearn-server process on a free loopback port, that a test may kill, end and start again in place."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.ports import free_port

from everlearn_client import Client
from everlearn_client.errors import Unavailable
from everlearn_protos.v1 import models_pb2

START_S = 300.0
"""Longest wait for a start or an end; far above what any takes, so that a loaded machine fails no test."""


class RealServer:
    """Runs `python -m everlearn_server.cli` on `folder`. The port stays the same over restarts, as a service's does.

    with RealServer(tmp_path / "data") as server, server.client() as client: ...
    """

    def __init__(
        self,
        folder: Path,
        *,
        arguments: Sequence[str] = (),
        program: Sequence[str] = ("-m", "everlearn_server.cli"),
        environment: Mapping[str, str] | None = None,
        beside: Path | None = None,
    ) -> None:
        """`arguments` follow the server's own; `program` is what Python runs, for an entry script of the test's own;
        log and ready file go to the folder `beside`, else next to the data folder."""
        self.folder = folder
        self.arguments = list(arguments)
        self.program = list(program)
        self.environment = {"OMP_NUM_THREADS": "1", **(environment or {})}
        self.host = "127.0.0.1"
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        beside = beside or folder.parent
        self._log = beside / f"{folder.name}.log"
        self._ready = beside / f"{folder.name}.ready.json"

    @property
    def address(self) -> str:
        """Host and port, the same over restarts."""
        return f"{self.host}:{self.port}"

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The process that runs, or ran last."""
        assert self._process is not None, "not started"
        return self._process

    @property
    def pid(self) -> int:
        """Of the process."""
        return self.process.pid

    @property
    def cpu_s(self) -> float:
        """CPU seconds that the process has used so far; unlike wall time it does not depend on the machine's load."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    @property
    def log(self) -> str:
        """All that this server has written, over restarts."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None and self._process.poll() is None:
            if error is None:
                self.terminate()
            else:
                self.kill()
        if error is not None:
            error.add_note(f"end of the server's log:\n{self.log[-4000:]}")

    def start(self) -> float:
        """Starts the process; returns the seconds from exec until a call was answered."""
        started_s = time.monotonic()
        self.launch()
        self.await_ready()
        while not self._answers():
            assert time.monotonic() - started_s < START_S, f"the server did not answer within {START_S} s"
            time.sleep(0.02)
        return time.monotonic() - started_s

    def await_ready(self) -> None:
        """Waits until a launched server listens."""
        until_s = time.monotonic() + START_S
        while not self._ready.exists():
            if self.process.poll() is not None:
                raise AssertionError(f"the server ended with {self.process.returncode}:\n{self.log[-4000:]}")
            if time.monotonic() > until_s:
                self.kill()
                raise AssertionError(f"the server did not answer within {START_S} s:\n{self.log[-4000:]}")
            time.sleep(0.005)
        assert json.loads(self._ready.read_text())["address"] == self.address

    @property
    def listens(self) -> bool:
        """Whether it has come so far; from here on SIGTERM drains."""
        return self._ready.exists()

    def _answers(self) -> bool:
        """A server that listens may still be out of reach: gRPC's connections, shared with every client of this
        process, wait before they try an address again that was closed a moment ago."""
        with self.client() as client:
            try:
                client.info()
            except Unavailable:
                return False
        return True

    def launch(self) -> subprocess.Popen[bytes]:
        """Starts the process without waiting until it answers: for servers that are to fail, or to die early."""
        assert self._process is None or self._process.poll() is not None, "it runs already"
        self._ready.unlink(missing_ok=True)
        command = [sys.executable, *self.program, "--data", str(self.folder), "--listen", self.address]
        command += ["--ready-file", str(self._ready), *self.arguments]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, **self.environment}
            )
        return self._process

    def kill(self) -> None:
        """SIGKILL, and waits until the process is gone."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(timeout=START_S)

    def end(self) -> None:
        """SIGKILL to what may still run: for whoever cleans up."""
        if self._process is not None and self._process.poll() is None:
            self.kill()

    def wait(self, *, timeout_s: float = START_S) -> int:
        """Waits until the process ends by itself; returns its exit status. Kills it where it does not end."""
        try:
            return self.process.wait(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"the server still ran after {timeout_s} s:\n{self.log[-4000:]}") from None

    def terminate(self, *, timeout_s: float = START_S) -> int:
        """SIGTERM; returns the exit status after the drain."""
        self.process.send_signal(signal.SIGTERM)
        return self.wait(timeout_s=timeout_s)

    def restart(self) -> float:
        """Ends it in an orderly way and starts it again; returns the seconds the start took."""
        status = self.terminate()
        assert status == 0, f"exit status {status}:\n{self.log[-4000:]}"
        return self.start()

    def client(self, *, client_id: str | None = None, timeout_s: float = 120.0) -> Client:
        """A client of this server; the caller closes it."""
        return Client(self.address, client_id=client_id, timeout_s=timeout_s)

    def declare(self, declaration: str) -> models_pb2.Model:
        """Applies a declaration and waits until the model is ready."""
        with self.client() as client:
            model = client.models.apply(declaration).model
        assert model is not None
        return model
