"""Runs one of our own modules in a child process: apart, without the parent's environment, killed when late.

The child sees no environment variable of the parent (no token), reads nothing from a terminal, finds this very
package, and dies with its parent where the system can arrange that.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, TypeVar

import everlearn
from everlearn.errors import BackboneError

T = TypeVar("T")
_PR_SET_PDEATHSIG = 1  # prctl(2)

_ENVIRONMENT = {
    # Whatever a library may try: no hub, no telemetry, no threads beyond what the code asks for.
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": str(Path(everlearn.__file__).parent.parent),
    "PYTHONIOENCODING": "utf-8",
    "PYTHONDONTWRITEBYTECODE": "1",
}


def run_module(module: str, arguments: Sequence[str] = (), *, stdin: bytes = b"", timeout_s: float, task: str) -> bytes:
    """Runs `python -m module` and returns what it wrote to stdout.

    Raises BackboneError, naming the task, if it is late, killed, or ends with an error: with its last line of stderr.
    """
    # -P: the working directory is no place to import from.
    command = [sys.executable, "-P", "-m", module, *arguments]
    try:
        done = subprocess.run(
            command, input=stdin, capture_output=True, env=_ENVIRONMENT, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired:
        raise BackboneError(f"{task} took more than {timeout_s:g} s and was stopped") from None
    if done.returncode == 0:
        return done.stdout
    lines = done.stderr.decode(errors="replace").strip().splitlines()
    last = lines[-1][:500] if lines else "it said nothing"
    if done.returncode < 0:
        raise BackboneError(f"{task} was killed by {signal.Signals(-done.returncode).name}; last it said: {last}")
    raise BackboneError(f"{task} failed: {last}")


class BackgroundModule:
    """`python -m module` that answers questions on its pipes until it is closed. One thread at a time."""

    def __init__(self, module: str, *, timeout_s: float, environment: Mapping[str, str] | None = None) -> None:
        """`timeout_s`: longest answer; a later one is not waited for. `environment`: beside what every child sees."""
        self._timeout_s = timeout_s
        self._is_late = False
        # A file rather than a pipe: nobody reads it, and a full pipe would stop the child.
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115  # closed with the process
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env={**_ENVIRONMENT, **(environment or {})},
        )

    def ask(self, write: Callable[[IO[bytes]], None], read: Callable[[IO[bytes]], T]) -> T:
        """Raises EOFError, with its last words, where the process ends, or is killed for being late."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        watchdog = threading.Timer(self._timeout_s, self._kill_late)
        watchdog.daemon = True
        watchdog.start()
        try:
            write(self._process.stdin)
            return read(self._process.stdout)
        except (EOFError, BrokenPipeError) as error:
            raise EOFError(self._last_words()) from error
        finally:
            watchdog.cancel()

    def close(self) -> None:
        """Ends the process, which has nothing to save."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._stderr):
            if stream is not None:
                with contextlib.suppress(OSError):  # what was not read by the child stays unread
                    stream.close()

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def _kill_late(self) -> None:
        self._is_late = True
        self._process.kill()

    def _last_words(self) -> str:
        try:
            code = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:  # it lives, and what it said was no answer
            self._process.kill()
            code = self._process.wait()
        if self._is_late:
            return f"no answer within {self._timeout_s:g} s"
        self._stderr.seek(0)
        lines = self._stderr.read().decode(errors="replace").strip().splitlines()
        said = lines[-1][:500] if lines else "no word"
        return f"{signal.Signals(-code).name if code < 0 else f'exit code {code}'}: {said}"


def become_background_child(niceness: int = 10) -> None:
    """Called by a child first: yields the CPU to those who answer requests, and dies when its parent does."""
    os.nice(niceness)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
