"""Tunes glibc's allocator for a server of large messages."""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -2, -3, -8  # mallopt(3)


def tune_malloc() -> bool:
    """Keeps buffers of up to 128 MiB in the heap instead of mapping and unmapping each.

    Every map costs page faults, which large gRPC messages are slowed down by. The heap gives memory back once 256 MiB
    are free at its top. Two heaps serve all threads: with one, those that answer wait for those that run a trunk; a
    heap each, as is the default, keeps more and settles later (`python -m tests.benchmarks memory` measures what is
    kept). It holds for what is allocated from then on: call it before the first model is loaded. Returns False, having
    done nothing, where the C library is not glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    libc = ctypes.CDLL(None)
    if not (hasattr(libc, "mallopt") and hasattr(libc, "gnu_get_libc_version")):
        return False
    wanted = ((_MMAP_THRESHOLD, 128 << 20), (_TRIM_THRESHOLD, 256 << 20), (_TOP_PAD, 16 << 20), (_ARENA_MAX, 2))
    accepted = [libc.mallopt(option, value) == 1 for option, value in wanted]
    return all(accepted)


def give_back() -> bool:
    """Gives pages of freed memory back to the system, those between memory in use too: after much was let go of. Takes
    some milliseconds, in which nothing else allocates. Returns False where the C library is not glibc."""
    libc = ctypes.CDLL(None)
    if not sys.platform.startswith("linux") or not hasattr(libc, "malloc_trim"):
        return False
    libc.malloc_trim(0)
    return True
