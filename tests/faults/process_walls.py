"""What a process has taken from itself, read from outside: /proc/PID tells its limits, its filters, and its owner.

Whether a process may be dumped is told by who owns the files below /proc/PID: root, where it forbids it. So a process
that is looked at must not be root's in every respect; `AS_ANOTHER_GROUP` sees to that where the tests run as root.
"""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.faults.not_here import NotHereError

GROUP = 65534
"""Of nobody's."""
AS_ANOTHER_GROUP = (
    "import contextlib, os, sys\n"
    f"with contextlib.suppress(OSError): os.getuid() or os.setgid({GROUP})\n"
    "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
)
"""For `python -c`: becomes `python` with what follows."""
_LANDLOCK_CREATE_RULESET, _LANDLOCK_VERSION = 444, 1


@dataclass(frozen=True, kw_only=True)
class Walls:
    """Of one process at one moment."""

    limits: Mapping[str, tuple[str, str]]
    """By the kernel's name of it: now, and how far it may be raised again."""
    filters: int
    """Of system calls: all that were put before it, its parents' too."""
    is_filtered: bool
    has_no_new_privileges: bool
    niceness: int
    ends_first: bool
    """Where memory runs out."""
    is_dumpable: bool | None
    """None where that cannot be seen."""

    def lacks(self, promised: Mapping[str, object]) -> dict[str, object]:
        """What is otherwise than promised. `promised`: by this class's fields, or by the kernel's names of limits; of a
        limit a number, or `int` for any that is not "unlimited"."""
        found: dict[str, object] = {}
        for name, wanted in promised.items():
            if name not in self.limits:
                is_kept, seen = (told := getattr(self, name)) == wanted or told is None, told
            elif wanted is int:
                is_kept, seen = "unlimited" not in self.limits[name][:1], self.limits[name]
            else:
                is_kept, seen = self.limits[name] == (str(wanted), str(wanted)), self.limits[name]
            if not is_kept:
                found[name] = seen
        return found


def walls_of(pid: int) -> Walls:
    """As it is now."""
    home = Path(f"/proc/{pid}")
    status = dict(line.split(":\t", 1) for line in (home / "status").read_text().splitlines() if ":\t" in line)
    return Walls(
        limits=_limits(home / "limits"),
        filters=int(status.get("Seccomp_filters", "0")),
        is_filtered=status.get("Seccomp") == "2",
        has_no_new_privileges=status.get("NoNewPrivs") == "1",
        niceness=int((home / "stat").read_text().rpartition(")")[2].split()[16]),
        ends_first=(home / "oom_score_adj").read_text().strip() == "1000",
        is_dumpable=_is_dumpable(home, status),
    )


def environment_of(pid: int) -> dict[str, str]:
    """As the process was started with. Raises NotHereError where only root may see it."""
    try:
        words = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    except PermissionError:
        raise NotHereError("/proc/PID/environ of a process that forbids dumps needs root") from None
    # glibc ends each of its tunables with a NUL where it reads them, in place: they are one value all the same.
    text = "\0".join(words).replace("\0glibc.", ":glibc.")
    return dict(word.split("=", 1) for word in text.split("\0") if "=" in word)


def module_of(pid: int) -> str:
    """The module of ours that a process runs; "server" for none."""
    words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
    return next((word for word in words if word.startswith("everlearn.")), "server")


def seccomp_is_here() -> bool:
    """Whether this machine has filters of system calls, for one of the processors that there is a list for."""
    return Path("/proc/sys/kernel/seccomp/actions_avail").exists() and platform.machine() in ("x86_64", "aarch64")


def landlock_here() -> int:
    """The kernel's version of it; 0 for none."""
    if sys.platform != "linux":
        return 0
    asked = ctypes.CDLL(None).syscall(_LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), _LANDLOCK_VERSION)
    return max(0, int(asked))


def start_children(monkeypatch: pytest.MonkeyPatch, *, before: Sequence[str] = ()) -> None:
    """Children that are started from here belong to another group where that is possible; `python -m module` becomes
    `python -m before module`."""
    children = subprocess.Popen

    class Child(children):  # type: ignore[type-arg]  # of bytes and of text
        def __init__(self, command: Sequence[str], **options: Any) -> None:
            if os.getuid() == 0:
                options["group"] = GROUP
            if "-m" in command:
                at = list(command).index("-m") + 1
                command = [*command[:at], *before, *command[at:]]
            super().__init__(command, **options)

    monkeypatch.setattr(subprocess, "Popen", Child)


def _limits(told: Path) -> dict[str, tuple[str, str]]:
    """Columns of 26, 21 and 21 letters; see proc(5)."""
    lines = told.read_text().splitlines()[1:]
    return {line[:26].strip(): (line[26:47].strip(), line[47:68].strip()) for line in lines}


def _is_dumpable(home: Path, status: Mapping[str, str]) -> bool | None:
    user, group = (int(status[name].split()[1]) for name in ("Uid", "Gid"))
    owner = (home / "status").stat()
    if status["State"].startswith("Z"):
        return None
    if user:
        return owner.st_uid == user
    return owner.st_gid == group if group else None
