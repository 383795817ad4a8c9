"""F5: the process, or the power, ends at one of the storage calls of a COMMIT: all of it is there, or nothing."""

from __future__ import annotations

import random
import signal
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from tests.faults.disk import Disk
from tests.faults.scene import Scene

SHORT: Mapping[str, int] = {"lives": 12, "blob_lives": 6}
LONG: Mapping[str, int] = {"lives": 200, "blob_lives": 100}


def run(folder: Path, *, lives: int, blob_lives: int = 0) -> Mapping[str, object]:
    """Half of the lives lose what was not synced, too. In `blob_lives` sums are files, as those of wide features."""
    found = _ended(folder / "rows", lives, fault="")
    if blob_lives:
        found += _ended(folder / "blobs", blob_lives, fault="blobs")
    return {"kills": lives + blob_lives, "of them with blobs": blob_lives, **found}


def _ended(folder: Path, lives: int, *, fault: str) -> Counter[str]:
    folder.mkdir(parents=True)
    found = Counter({"of them power cuts": lives // 2, "commits found whole": 0, "found undone": 0})
    with Disk(folder / "disk") as disk:
        scene, chance = Scene(folder, batches=4000, data=disk.folder / "data"), random.Random(5)
        scene.server.fault = fault
        disk.settle()
        scene.go(freely=False)
        for life in range(lives):
            scene.server.start()
            where = ("fsync", 1 + chance.randrange(6)) if life % 3 else ("", 1 + chance.randrange(60))
            disk.plan(call=where[0], nth=where[1], error="cut", pid=scene.server.pid)
            assert scene.feed_until_dead() == -signal.SIGKILL
            # What the process has written is there, unless the power went with it.
            disk.cut(survives=chance.choice((0.0, 0.5)) if life % 2 else 1.0, seed=life)
            broken = scene.at_rest()
            assert broken == [], f"life {life}, {where}: {broken}"
            found["commits found whole" if scene.ahead > 0 else "found undone"] += 1
        disk.plan()
        scene.calm_end()
    return found
