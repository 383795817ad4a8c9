"""F9: the system kills the server for lack of memory, again and again; nothing is lost, nothing counted twice."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.faults.forked import ForkedServer
from tests.faults.not_here import NotHereError
from tests.faults.parts.bad_network import progress_s
from tests.faults.scene import Scene

SHORT: Mapping[str, int] = {"kills": 10}
LONG: Mapping[str, int] = {"kills": 100}
_LIMITS = 3


def run(folder: Path, *, kills: int) -> Mapping[str, object]:
    """The state at rest is judged after every kill for the first ten, then after every tenth."""
    scene = Scene(folder, batches=1_500 * kills, samples=16)
    scene.server.start()
    scene.go(freely=False)
    judged = 0
    for kill in range(kills):
        progress_s(scene)
        with little_memory(scene.server, more_bytes=1 << (18 + kill % _LIMITS)):
            assert scene.feed_until_dead(batches=16) == -9
        if kill < 10 or kill % 10 == 0:
            broken = scene.at_rest()
            assert broken == [], f"kill {kill}: {broken}"
            judged += 1
        scene.server.start()
    expected = scene.calm_end()
    return {
        "kills": kills,
        "states judged": judged,
        "samples": expected.samples,
        "reconnects": sum(learner.reconnects for learner in scene.learners),
        "batches lost": 0,
        "counted twice": 0,
    }


@contextmanager
def little_memory(server: ForkedServer, *, more_bytes: int) -> Iterator[None]:
    """The server's processes may take so much more than they have now. Raises NotHereError."""
    group = Path(f"/sys/fs/cgroup/memory/everlearn-{os.getpid()}")
    try:
        group.mkdir()
    except OSError as error:
        raise NotHereError(f"no memory cgroup (version 1) can be made: {error.strerror}") from error
    try:
        (group / "memory.limit_in_bytes").write_text(str(more_bytes))
        (group / "cgroup.procs").write_text(str(server.pid))  # what it has is charged to where it came from
        yield
    finally:
        if server.process.poll() is None:
            server.kill()
        until_s = time.monotonic() + 10
        while (group / "cgroup.procs").read_text().strip() and time.monotonic() < until_s:
            time.sleep(0.05)
        group.rmdir()
