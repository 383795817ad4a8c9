"""F1-F7: SIGKILL after each step of the protocol, each time with the state judged by the ledger's own watermarks."""

from __future__ import annotations

import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.faults.scene import PATIENCE_S, Scene
from tests.store_rows import blob_files

ROWS: Mapping[str, str] = {
    "arrived": "F1",
    "received_due": "F1",
    "received_sent": "F2",
    "blob_half": "F3",
    "blob_written": "F3",
    "blob_renamed": "F4",
    "begun": "F4",
    "before_commit": "F4",
    "committed": "F6",
    "durable_due": "F6",
    "durable_sent": "F7",
}
"""Step -> row of the matrix. F5, inside COMMIT, is parts/inside_commit.py."""
SHORT: Mapping[str, int] = {"kills": 3}
LONG: Mapping[str, int] = {"kills": 50}


@dataclass(frozen=True)
class Kill:
    """What one of them left."""

    point: str
    temporary: int
    """Files that were being written."""
    orphans: int
    """Blobs more than before, but for those."""
    ahead: int
    """Batches that are durable and whose clients were not told so."""


def run(folder: Path, *, kills: int, points: tuple[str, ...] = tuple(ROWS)) -> Mapping[str, object]:
    """`kills` after each point."""
    with_blobs = [point for point in points if point.startswith("blob")]
    found = killed(folder / "rows", [point for point in points if point not in with_blobs] * kills)
    if with_blobs:
        found += killed(folder / "blobs", with_blobs * kills, blobs=True)
    return {"kills": len(found), "points": len(points), "batches lost": 0, "counted twice": 0}


def killed(folder: Path, points: list[str], *, blobs: bool = False) -> list[Kill]:
    """One server after the other, each killed at its point; AssertionError where a promise was broken.

    `blobs`: sums are files, as those of more than 4 MB are.
    """
    folder.mkdir(exist_ok=True)
    scene, kills = Scene(folder, batches=100 * len(points) + 2000), []
    scene.go(freely=False)
    for turn, point in enumerate(points):
        gate = folder / f"gate-{turn}" if ROWS[point] == "F4" else None
        scene.server.fault = f"kill:{point}:{1 + turn % 3}" + f":{gate}" * bool(gate) + "+blobs" * blobs
        before = set(blob_files(scene.server.folder))
        scene.server.launch()
        if gate:
            _hear_of_commits(scene, gate)
        assert scene.feed_until_dead() == -signal.SIGKILL, point
        new = set(blob_files(scene.server.folder)) - before
        temporary = sum(name.startswith(".part-") for name in new)
        broken = scene.at_rest()
        assert broken == [], f"after {point}: {broken}"
        kills.append(Kill(point, temporary=temporary, orphans=len(new) - temporary, ahead=scene.ahead))
    scene.calm_end()
    return kills


def _hear_of_commits(scene: Scene, gate: Path) -> None:
    """Until the server stands before the commit that it dies before, and clients have been told of those before that:
    what they do not know then is of that commit."""
    reached, end_s = gate.with_name(f"{gate.name}.reached"), time.monotonic() + PATIENCE_S
    while not reached.exists() or scene.at_rest() or scene.ahead:
        assert time.monotonic() < end_s, f"{scene.ahead} batches are durable and nobody is told"
        assert scene.server.process.poll() is None, scene.server.log[-2000:]
        scene.trickle(4)
        time.sleep(0.01)
    gate.touch()
