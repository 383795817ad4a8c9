"""A real everlearn-server process on a free loopback port, that a test may kill, end and start again in place."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from everlearn_client import Client
from everlearn_protos.v1 import models_pb2

START_S = 90.0
"""Longest wait for a start; far above what any takes, so that a loaded machine fails no test."""


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
    ) -> None:
        """`arguments` follow the server's own; `program` is what Python runs, for an entry script of the test's own."""
        self.folder = folder
        self.arguments = list(arguments)
        self.program = list(program)
        self.environment = {"OMP_NUM_THREADS": "1", **(environment or {})}
        self.port = _free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._log = folder.parent / f"{folder.name}.log"
        self._ready = folder.parent / f"{folder.name}.ready.json"

    @property
    def address(self) -> str:
        """Host and port, the same over restarts."""
        return f"127.0.0.1:{self.port}"

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
        while not self._ready.exists():
            if self.process.poll() is not None:
                raise AssertionError(f"the server ended with {self.process.returncode}:\n{self.log[-4000:]}")
            if time.monotonic() - started_s > START_S:
                self.kill()
                raise AssertionError(f"the server did not answer within {START_S} s:\n{self.log[-4000:]}")
            time.sleep(0.005)
        assert json.loads(self._ready.read_text())["address"] == self.address
        with self.client() as client:
            client.info()
        return time.monotonic() - started_s

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
        self.process.wait(timeout=10)

    def wait(self, *, timeout_s: float = 30.0) -> int:
        """Waits until the process ends by itself; returns its exit status. Kills it where it does not end."""
        try:
            return self.process.wait(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"the server still ran after {timeout_s} s:\n{self.log[-4000:]}") from None

    def terminate(self, *, timeout_s: float = 30.0) -> int:
        """SIGTERM; returns the exit status after the drain."""
        self.process.send_signal(signal.SIGTERM)
        return self.wait(timeout_s=timeout_s)

    def restart(self) -> float:
        """Ends it in an orderly way and starts it again; returns the seconds the start took."""
        status = self.terminate()
        assert status == 0, f"exit status {status}:\n{self.log[-4000:]}"
        return self.start()

    def client(self, *, client_id: str | None = None, timeout_s: float = 30.0) -> Client:
        """A client of this server; the caller closes it."""
        return Client(self.address, client_id=client_id, timeout_s=timeout_s)

    def declare(self, declaration: str) -> models_pb2.Model:
        """Applies a declaration and waits until the model is ready."""
        with self.client() as client:
            model = client.models.apply(declaration).model
        assert model is not None
        return model


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
