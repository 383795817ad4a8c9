"""What keeps raw data out of freed memory, dumps and shared folders: settings of the process itself.

    launch -> the environment that wipes memory when it is freed (read by the C library before anything runs)
           -> no core dumps, files for the owner alone, a temporary folder of our own in RAM

Only the standard library is imported: this runs before everything else, in the server and in its children. It is glibc
that wipes; elsewhere `observed` says that nothing does.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import fcntl
import os
import resource
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

_TUNABLES = {"glibc.malloc.tcache_count": "0", "glibc.malloc.mxfast": "0"}
WIPING = {"MALLOC_PERTURB_": "165", "PYTHONMALLOC": "malloc"}
"""Freed memory is overwritten, and Python's small objects are the C library's too. See also `wiping`."""
_PR_GET_DUMPABLE, _PR_SET_DUMPABLE = 3, 4  # prctl(2)
_PREFIX = "everlearn-tmp-"
_IN_RAM = Path("/dev/shm")
_SWAPS, _BLOCK_DEVICES = Path("/proc/swaps"), Path("/sys/block")


def wiping(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that a process has to be started with to overwrite what it frees. Thread caches are off, for what
    lies in them is not overwritten. So are fast bins: without thread caches every small chunk goes through them, and
    every large one that is freed (a request's payload) empties them all into the ordinary bins, which shows in
    `python -m tests.benchmarks serving`. Other tunables of glibc that are set stay.

    >>> wiping({"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=1"})["GLIBC_TUNABLES"]
    'glibc.malloc.trim_threshold=1:glibc.malloc.tcache_count=0:glibc.malloc.mxfast=0'
    """
    set_already = environment.get("GLIBC_TUNABLES", "").split(":")
    others = [one for one in set_already if one and one.partition("=")[0] not in _TUNABLES]
    ours = [f"{name}={value}" for name, value in _TUNABLES.items()]
    return {**WIPING, "GLIBC_TUNABLES": ":".join([*others, *ours])}


def wipes(environment: Mapping[str, str]) -> bool:
    """Whether a process that was started with this environment overwrites what it frees."""
    is_set = all(environment.get(name) == value for name, value in wiping(environment).items())
    return is_set and _is_glibc()


def forbid_dumps() -> bool:
    """No core dump of this process, to a file or to a program; nor may others of the same user look into it.

    Returns False where the system has no such switch; the limit on core files holds all the same.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform != "linux":
        return False
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    return int(libc.prctl(_PR_GET_DUMPABLE, 0, 0, 0, 0)) == 0


def use_private_temp() -> Path:
    """Temporary files of this process go to a folder of its own (0700) that is gone when it ends: in RAM where there is
    a file system for that. Folders that killed processes left are removed."""
    home = _IN_RAM if os.access(_IN_RAM, os.W_OK) and _is_tmpfs(_IN_RAM) else Path(tempfile.gettempdir())
    _sweep(home)
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=home))
    # Held for as long as the process lives: the lock says to others that the folder is in use.
    fcntl.flock(os.open(folder, os.O_RDONLY), fcntl.LOCK_EX)
    folder.mkdir(mode=0o700, exist_ok=True)  # another's sweep may have been quicker than the lock
    tempfile.tempdir = str(folder)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def observed(environment: Mapping[str, str]) -> dict[str, str]:
    """What holds in this process now, by what it protects; for logs and for whoever asks the server."""
    return {
        "heap": _heap(environment),
        "core_dumps": "off" if _dumps_are_off() else "possible",
        "temporary_files": _temp(),
        "swap": ", ".join(_plain_swaps()) or "none that is not encrypted",
    }


def is_hardened(protection: Mapping[str, str]) -> bool:
    """Whether all of `observed` is as it should be."""
    temp_is_private = protection["temporary_files"].startswith("private")
    swap_is_safe = protection["swap"].startswith("none")
    heap_is_wiped, no_dumps = protection["heap"] == "wiped when freed", protection["core_dumps"] == "off"
    return heap_is_wiped and no_dumps and temp_is_private and swap_is_safe


def _heap(environment: Mapping[str, str]) -> str:
    # Here: whoever asks has loaded NumPy, but what runs before everything else must not.
    from everlearn.runtime.numpy_memory import keeps_small_arrays

    if not wipes(environment):
        return "not wiped when freed"
    return "wiped when freed, but for small arrays" if keeps_small_arrays() else "wiped when freed"


def _is_glibc() -> bool:
    try:
        return (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc")
    except (ValueError, OSError):
        return False


def _dumps_are_off() -> bool:
    limit_is_0 = resource.getrlimit(resource.RLIMIT_CORE)[0] == 0
    if sys.platform != "linux":
        return limit_is_0
    # A program that the kernel hands dumps to gets them whatever the limit says, unless the process forbids it.
    return limit_is_0 and ctypes.CDLL(None).prctl(_PR_GET_DUMPABLE, 0, 0, 0, 0) == 0


def _temp() -> str:
    folder = Path(tempfile.gettempdir())
    if not folder.name.startswith(_PREFIX):
        return "shared folder"
    return "private, in RAM" if _is_tmpfs(folder) else "private, on disk"


def _is_tmpfs(folder: Path) -> bool:
    try:
        mounts = Path("/proc/self/mounts").read_text().splitlines()
    except OSError:
        return False
    kinds = {fields[1]: fields[2] for fields in map(str.split, mounts)}
    return next((kinds[str(at)] for at in (folder, *folder.parents) if str(at) in kinds), "") == "tmpfs"


def _plain_swaps() -> list[str]:
    """Devices and files that memory may be written to in the clear."""
    try:
        lines = _SWAPS.read_text().splitlines()[1:]
    except OSError:
        return []
    return [device for device in (line.split()[0] for line in lines) if not _is_safe_swap(Path(device))]


def _is_safe_swap(device: Path) -> bool:
    name = device.resolve().name
    if name.startswith("zram"):  # compressed RAM
        return _text(_BLOCK_DEVICES / name / "backing_dev").strip() in ("", "none")
    return _text(_BLOCK_DEVICES / name / "dm/uuid").startswith("CRYPT-")


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _sweep(home: Path) -> None:
    for folder in home.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):  # another user's, or gone meanwhile
            descriptor = os.open(folder, os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY)
            try:
                if os.fstat(descriptor).st_uid == os.getuid():
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(folder)
            finally:
                os.close(descriptor)
