"""kill -9 at random moments of a stream of 8 clients: nothing lost, nothing counted twice, the sums to the bit."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Mapping
from pathlib import Path

from tests.faults.scene import Scene

CLIENTS = 8
SHORT: Mapping[str, int] = {"kills": 100, "batches": 10_000}
LONG: Mapping[str, int] = {"kills": 1_000, "batches": 100_000}
BY_EXEC = 5
"""Starts that pay for a new process too, as a supervisor's do; their time is what is told."""
PATIENCE_S = 3.0


def run(folder: Path, *, kills: int, batches: int) -> Mapping[str, object]:
    """The clients make one plain call each. Every 20th time the state at rest is judged, too."""
    folder.mkdir(exist_ok=True)
    scene, chance = Scene(folder, clients=CLIENTS, batches=batches // CLIENTS), random.Random(20261121)
    share, starts_s, cpus_s = batches // CLIENTS // kills, list[float](), list[float]()
    scene.go(freely=False)
    scene.server.start()
    for kill in range(kills):
        scene.feed(share)
        aim, end_s = scene.crowd.received + chance.randint(0, share * CLIENTS), time.monotonic() + PATIENCE_S
        while scene.crowd.received < aim and time.monotonic() < end_s:
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.05))
        scene.server.kill()
        if kill % 20 == 0:
            broken = scene.at_rest()
            assert broken == [], f"kill {kill}: {broken}"
        scene.server.by_exec = kill >= kills - BY_EXEC
        began_s = scene.server.start()
        if scene.server.by_exec:
            starts_s.append(began_s)
            cpus_s.append(scene.server.cpu_s)
    expected = scene.calm_end(timeout_s=240, all_of_them=True)
    assert sum(len(learner.batches) for learner in scene.learners) == batches // CLIENTS * CLIENTS
    return {
        "kills": kills,
        "batches": batches // CLIENTS * CLIENTS,
        "samples": expected.samples,
        "answers": scene.crowd.received,
        "reconnects": sum(learner.reconnects for learner in scene.learners),
        "restart s, median": round(statistics.median(starts_s), 2),
        "restart CPU s, most": round(max(cpus_s), 2),
        "batches lost": 0,
        "counted twice": 0,
    }
