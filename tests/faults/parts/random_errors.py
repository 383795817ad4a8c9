"""F8: a bad disk. 3 % of all fsyncs and 1 % of all writes fail; the server ends and starts until all is durable."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from tests.faults.disk import Disk
from tests.faults.scene import Scene

SHORT: Mapping[str, int] = {"batches": 4_000, "blob_batches": 400}
LONG: Mapping[str, int] = {"batches": 100_000, "blob_batches": 20_000}
CHANCES = {"fsync": 0.03, "fsyncdir": 0.03, "write": 0.01}


def run(folder: Path, *, batches: int, blob_batches: int = 0) -> Mapping[str, object]:
    """So many, and so many to a model whose sums are files, as those of wide features are."""
    found = _lived(folder / "rows", batches, fault="")
    if blob_batches:
        found += _lived(folder / "blobs", blob_batches, fault="blobs")
    return {"batches": batches, "with blobs": blob_batches, "lost": 0, **found}


def _lived(folder: Path, batches: int, *, fault: str) -> Counter[str]:
    """Four clients. A supervisor starts the server whenever it has ended."""
    folder.mkdir(parents=True)
    found = Counter({"failed calls": 0, "exits with 75": 0, "starts refused": 0})
    with Disk(folder / "disk") as disk:
        scene = Scene(folder, clients=4, batches=batches // 4, data=disk.folder / "data")
        scene.server.fault = fault
        disk.settle()
        scene.go()
        while scene.crowd.is_streaming:
            seed = found["exits with 75"] + found["starts refused"]
            disk.plan(chances=CHANCES, seed=seed)
            scene.server.launch()
            while scene.server.process.poll() is None and scene.crowd.is_streaming:
                time.sleep(0.005)
            status = scene.server.process.poll()
            if status is not None:
                found["failed calls"] += disk.told().failed
                assert status in (1, 75), f"exit status {status}\n{scene.server.log[-3000:]}"
                found["exits with 75" if status == 75 else "starts refused"] += 1
                disk.cut(seed=seed + 1)
        # It may be about to end, of a call that failed a moment ago: the next one finds a good disk.
        if scene.server.process.poll() is None:
            scene.server.kill()
        disk.plan()
        assert "Traceback" not in scene.server.log, scene.server.log[-3000:]
        scene.calm_end()
    return found
