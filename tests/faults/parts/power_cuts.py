"""Power cuts at random moments and right after storage calls: what was said to be durable is there, to the bit.

Of sums that are rows, of sums that are files, as those of wide features are, and of each client's own sums.
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from pathlib import Path

from tests.faults.disk import Disk
from tests.faults.scene import PATIENCE_S, Scene

from everlearn_server.check.folder import check

SHORT: Mapping[str, int] = {"cuts": 20, "blob_cuts": 5, "own_sums_cuts": 3}
LONG: Mapping[str, int] = {"cuts": 200, "blob_cuts": 100, "own_sums_cuts": 50}
PROMISE = "told"


def run(
    folder: Path, *, cuts: int, blob_cuts: int = 0, own_sums_cuts: int = 0, fault: str = "", dim: int = 64
) -> Mapping[str, object]:
    """One kind after the other, each on a disk of its own. `fault`: of a control, at each of `cuts`."""
    folder.mkdir(exist_ok=True)
    kinds = {
        "power cuts": lambda: survived(folder / "rows", cuts, fault=fault, dim=dim),
        "with blobs": lambda: survived(folder / "blobs", blob_cuts, fault="blobs"),
        "with own sums": lambda: survived(folder / "own", own_sums_cuts, fault="blobs", privacy={"client_sums": True}),
    }
    sizes = dict(zip(kinds, (cuts, blob_cuts, own_sums_cuts), strict=True))
    found = [kinds[kind]() for kind, size in sizes.items() if size]
    calls, samples = (sum(each[index] for each in found) for index in range(2))
    return {**sizes, "storage calls": calls, "samples": samples, "batches lost": 0}


def survived(folder: Path, cuts: int, *, fault: str, dim: int = 64, **spec: object) -> tuple[int, int]:
    """Of `cuts`, a third come right after a storage call, the rest at any time. Storage calls, and samples learned."""
    folder.mkdir()
    with Disk(folder / "disk") as disk:
        scene = Scene(folder, dim=dim, batches=60 * cuts + 2000, data=disk.folder / "data", **spec)
        chance, calls = random.Random(7), 0
        disk.settle()
        scene.go(freely=False)
        for cut in range(cuts):
            scene.server.fault = fault
            scene.server.start()
            if cut % 3 == 0:
                disk.plan(nth=1 + chance.randrange(120), error="cut", pid=scene.server.pid)
                scene.feed_until_dead()
            else:
                _feed_for_a_while(scene, chance)
                scene.server.kill()
            calls += disk.told().calls
            disk.cut(survives=chance.choice((0.0, 0.0, 0.3, 0.7)), seed=cut)
            broken = scene.at_rest()
            if not broken and spec:
                broken = [str(finding) for finding in check(scene.server.folder).damaged]
            assert broken == [], f"cut {cut}: {broken}"
        expected = scene.calm_end()
    return calls, expected.samples


def _feed_for_a_while(scene: Scene, chance: random.Random) -> None:
    """Until something more is durable, and a moment longer."""
    before, end_s = scene.durable, time.monotonic() + PATIENCE_S
    while scene.durable == before:
        assert time.monotonic() < end_s, "nothing becomes durable"
        scene.trickle(2)
        time.sleep(0.01)
    until_s = time.monotonic() + chance.uniform(0, 0.2)
    while time.monotonic() < until_s:
        scene.trickle(2)
        time.sleep(0.01)
