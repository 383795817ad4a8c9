"""F8: the n-th storage call of a run of 30 batches fails, for n = 1, 2, ...: the server ends, and starts again."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.faults.disk import Disk
from tests.faults.parts.bad_network import progress_s
from tests.faults.scene import PATIENCE_S, Scene

BATCHES = 30
ENDS = {0: "ended well", 1: "refused to start", 75: "ended for a supervisor"}
SHORT: Mapping[str, int] = {"step": 10, "blob_step": 0}
"""With both errors in turn, every 5th call fails."""
LONG: Mapping[str, int] = {"step": 1, "blob_step": 1}
BLOB_CALLS = ("create", "rename", "fsyncdir", "unlink")
"""What a commit makes more where sums are files: with blobs, the first ones of these fail in any size."""


def run(
    folder: Path, *, step: int, blob_step: int = 0, errors: Sequence[str] = ("EIO", "ENOSPC")
) -> Mapping[str, object]:
    """A run is a server's life: its start, 30 batches, its end. After every other one the power fails, too."""
    rows, calls = _failed(folder / "rows", step, errors)
    files, _ = _failed(folder / "blobs", blob_step, errors, blobs=True)
    ends = rows + files
    counts = {"failed calls": ends.total(), "of them with blobs": files.total(), "calls of a run": calls}
    return {**counts, "batches lost": 0, **ends}


def _failed(folder: Path, step: int, errors: Sequence[str], *, blobs: bool = False) -> tuple[Counter[str], int]:
    """How servers ended; and the highest call that failed."""
    folder.mkdir(parents=True)
    ends, last = Counter[str](), 0
    kinds = [(call, errors[turn % 2], nth) for turn, call in enumerate(BLOB_CALLS) for nth in (1, 4)] if blobs else []
    with Disk(folder / "disk") as disk:
        scene = Scene(folder, batches=20_000, data=disk.folder / "data")
        scene.server.fault = "blobs" * blobs
        disk.settle()
        scene.go(freely=False)
        scene.server.start()
        progress_s(scene)  # else a client may not have met a server that lives by the end
        assert scene.server.terminate() == 0
        for call, error, nth in kinds:
            ends += _one(scene, disk, call, error, nth)
        for turn, error in enumerate(errors if step else ()):
            nth = 1 + turn * step // 2
            while found := _one(scene, disk, "", error, nth):  # else it makes fewer calls
                ends += found
                last, nth = max(last, nth), nth + step
        disk.plan()
        assert "Traceback" not in scene.server.log, scene.server.log[-3000:]
        scene.calm_end()
    return ends, last


def _one(scene: Scene, disk: Disk, call: str, error: str, nth: int) -> Counter[str]:
    """How a server ended whose n-th call failed; empty where it made fewer."""
    disk.plan(call=call, nth=nth, error=error)
    status = _live(scene)
    failed, what = disk.told().failed, f"{error} at {call or 'call'} {nth}"
    assert status in ENDS, f"{what}: exit status {status}\n{scene.server.log[-3000:]}"
    if failed and nth % 2:
        disk.cut()
    disk.plan()
    broken = scene.at_rest()
    assert broken == [], f"{what}: {broken}"
    return Counter({ENDS[status]: 1}) if failed else Counter()


def _live(scene: Scene) -> int:
    scene.server.launch()
    process, before, end_s = scene.server.process, scene.durable, time.monotonic() + PATIENCE_S
    # Clients may still have answers of the life before to read: they do not mean that this one listens.
    while process.poll() is None and not (scene.server.listens and scene.durable >= before + BATCHES):
        assert time.monotonic() < end_s, f"nothing moves\n{scene.server.log[-2000:]}"
        scene.trickle()  # a client hears nothing while it waits for its next batch
        time.sleep(0.01)
    return process.wait() if process.poll() is not None else scene.server.terminate()
