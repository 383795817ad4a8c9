"""Ports for servers that are started, killed and started again in one place, while nobody may take theirs."""

from __future__ import annotations

import fcntl
import os
import socket
import tempfile
from collections import deque
from itertools import count
from pathlib import Path

_FIRST, _LAST = 10_000, 32_000
_SYSTEMS_OWN = Path("/proc/sys/net/ipv4/ip_local_port_range")
_held: deque[int] = deque()
"""The latest; servers that were given the older ones have ended, or are found to listen."""
_HELD = 100
_given = count()


def free_port() -> int:
    """Of the loopback; no other process of tests on this machine is given it while this one holds it.

    It lies below those that the system gives out by itself: those go to whatever connects, in the second before a
    server listens and in the one between two of its lives.
    """
    own = int(_SYSTEMS_OWN.read_text().split()[0]) if _SYSTEMS_OWN.exists() else _LAST + 1
    last = min(_LAST, own - 1) if own > 2 * _FIRST else _LAST
    locks = Path(tempfile.gettempdir()) / f"everlearn-ports-{os.getuid()}"
    locks.mkdir(exist_ok=True)
    ports = last - _FIRST + 1
    for _ in range(ports):
        port = _FIRST + (os.getpid() * 67 + next(_given)) % ports
        lock = os.open(locks / str(port), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", port))
        except OSError:
            os.close(lock)
            continue
        _held.append(lock)
        if len(_held) > _HELD:
            os.close(_held.popleft())
        return port
    raise AssertionError(f"no port is free from {_FIRST} to {last}")
