"""Runs one of our own modules in a child process: apart, without the parent's environment, killed when late.

The child sees no environment variable of the parent (no token), reads nothing from a terminal, finds this very
package, and dies with its parent where the system can arrange that.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import resource
import shutil
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
from everlearn.runtime.hardening import forbid_dumps, wiping
from everlearn.runtime.numpy_memory import keep_no_small_arrays

T = TypeVar("T")
_PR_SET_PDEATHSIG = 1  # prctl(2)

_ERROR = re.compile(r"[A-Za-z_][\w.]*(Error|Exception|Interrupt)\b")

_ENVIRONMENT = {
    # What a child frees is overwritten, as in the server.
    **wiping({}),
    # Whatever a library may try: no hub, no telemetry, no threads beyond what the code asks for.
    # Not the parent's: without any, a compiler that torch calls does not find its own parts.
    "PATH": os.defpath,
    "HF_HUB_OFFLINE": "1",
    "ORT_DISABLE_TELEMETRY": "1",
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": str(Path(everlearn.__file__).parent.parent),
    "PYTHONIOENCODING": "utf-8",
    "PYTHONDONTWRITEBYTECODE": "1",
}


def run_module(module: str, arguments: Sequence[str] = (), *, stdin: bytes = b"", timeout_s: float, task: str) -> bytes:
    """Runs `python -m module` and returns what it wrote to stdout.

    Raises BackboneError, naming the task, if it is late, killed, or ends with an error: with what it said last.
    """
    # -P: the working directory is no place to import from.
    command = [sys.executable, "-P", "-m", module, *arguments]
    try:
        done = subprocess.run(
            command, input=stdin, capture_output=True, env=child_environment(), timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired:
        raise BackboneError(f"{task} took more than {timeout_s:g} s and was stopped") from None
    if done.returncode == 0:
        return done.stdout
    last = _told(done.stderr) or "it said nothing"
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
        # Its own and nobody else's: what torch compiles lies there, and is loaded from there.
        self._temporary = tempfile.mkdtemp(prefix="everlearn-child-")
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", module],
            # Without buffers of ours, which would keep the end of what was sent last.
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env=child_environment({"TMPDIR": self._temporary, **(environment or {})}),
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
        shutil.rmtree(self._temporary, ignore_errors=True)
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
        said = _told(self._stderr.read()) or "no word"
        return f"{signal.Signals(-code).name if code < 0 else f'exit code {code}'}: {said}"


def child_environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """All that a child sees of ours."""
    return {**_ENVIRONMENT, "TMPDIR": tempfile.gettempdir(), **(more or {})}


def _told(stderr: bytes) -> str:
    """The last line that names an error, for CUDA's go on for lines of advice; without one, the last line."""
    lines = stderr.decode(errors="replace").strip().splitlines()
    errors = [line for line in lines if _ERROR.match(line)]
    return (errors or lines or [""])[-1][:500]


def become_background_child(niceness: int = 10) -> None:
    """Called by a child first: yields the CPU to those who answer requests, dies when its parent does, and before its
    parent where memory runs out. Leaves no core behind and no small arrays in NumPy's store: they may hold samples."""
    forbid_dumps()
    keep_no_small_arrays()
    os.nice(niceness)
    with contextlib.suppress(OSError):  # a system without /proc
        Path("/proc/self/oom_score_adj").write_text("1000")
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def limit_memory(needed_bytes: int) -> None:
    """From now on this process maps no more than `needed_bytes` on top of what it has: libraries are loaded before.

    What asks for more gets a MemoryError or std::bad_alloc. Does nothing where /proc does not tell what is mapped.
    """
    statm = Path("/proc/self/statm")
    if statm.exists():
        mapped = int(statm.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (mapped + needed_bytes,) * 2)
