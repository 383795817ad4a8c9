"""Runs one of our own modules in a child process: apart, without the parent's environment, killed when late.

The child sees no environment variable of the parent (no token), reads nothing from a terminal, finds this very
package, and dies with its parent where the system can arrange that.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import everlearn
from everlearn.errors import BackboneError

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


def become_background_child(niceness: int = 10) -> None:
    """Called by a child first: yields the CPU to those who answer requests, and dies when its parent does."""
    os.nice(niceness)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
