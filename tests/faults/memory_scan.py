"""What lies in the memory of a process and its children, looked for through /proc/PID/mem."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import psutil

_CHUNK = 32 * 2**20
_NOT_MEMORY = ("[vvar", "[vsyscall", "[vdso")


def family(pid: int) -> list[int]:
    """The process and all that descend from it."""
    return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]


def count_in_memory(pids: Iterable[int], find: Callable[[bytes], Mapping[str, int]], overlap: int) -> Counter[str]:
    """What `find` counts in every writable page of these processes. `overlap`: bytes of the longest needle.

    Raises PermissionError where the kernel lets nobody look.
    """
    found: Counter[str] = Counter()
    for pid in pids:
        try:
            for region in _regions(pid, overlap):
                found.update(find(region))
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended, and its memory with it
    return found


def _regions(pid: int, overlap: int) -> Iterable[bytes]:
    """The parts of its memory. Private files that are mapped copy on write count too."""
    memory = os.open(f"/proc/{pid}/mem", os.O_RDONLY)
    try:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            span, rights, *rest = line.split(maxsplit=5)
            if "w" not in rights or (len(rest) > 3 and rest[3].startswith(_NOT_MEMORY)):
                continue
            first, last = (int(end, 16) for end in span.split("-"))
            while first < last:
                try:
                    yield os.pread(memory, min(_CHUNK, last - first), first)
                except OSError:  # a page that cannot be read: a guard, a device's
                    break
                first += _CHUNK - overlap
    finally:
        os.close(memory)
