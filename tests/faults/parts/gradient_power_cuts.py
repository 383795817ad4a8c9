"""Power cuts while a model learns by gradient steps, its checkpoint a file: weights, optimizer, schedule, random state
and latents are to the bit what a replay of what was durable gives."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tests.faults.disk import Disk
from tests.faults.parts import gradient_kills

SHORT: Mapping[str, int] = {"cuts": 2}
LONG: Mapping[str, int] = {"cuts": 30}


def run(folder: Path, *, cuts: int, fault: str = "") -> Mapping[str, object]:
    """As parts/gradient_kills.py, on a disk that keeps what was synced. `fault`: of a control."""
    folder.mkdir(exist_ok=True)
    with Disk(folder / "disk") as disk:
        found = gradient_kills.run(folder, kills=cuts, fault=fault or "blobs", disk=disk)
    return {"power cuts" if key == "kills" else key: value for key, value in found.items()}
