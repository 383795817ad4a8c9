"""`privacy: {client_sums: true}`: what a commit costs more for each client in it, and the bytes."""

from __future__ import annotations

import asyncio
import itertools
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
from tests.benchmarks.embedded import LabelledFeatures, engine, learn, tiny_declaration
from tests.benchmarks.scene import DIM, Scene, clustered_features
from tests.benchmarks.table import Row

BATCH = 16
LABELS = [row % 10 for row in range(BATCH)]
NAMES = tuple(str(label) for label in LABELS)
CLIENTS = {64: 64, DIM: 8}


def measure(scene: Scene, *, quick: bool) -> list[Row]:
    """At a small and at a real dimension, each beside a model that keeps no such sums, in one run."""
    seconds = 0.7 if quick else 20.0
    return [asyncio.run(_measure(scene, dim, clients, seconds)) for dim, clients in CLIENTS.items()]


async def _measure(scene: Scene, dim: int, clients: int, seconds: float) -> Row:
    scene.tell(f"{clients} clients stream features of {dim} dimensions for {seconds:.0f} s, twice")
    plain_s, _ = await _commit_s(scene.folder / f"plain-{dim}", dim, clients, seconds, own=False)
    own_s, size = await _commit_s(scene.folder / f"own-{dim}", dim, clients, seconds, own=True)
    return Row(
        group="client_sums",
        what=f"each client's own sums, d = {dim}, {clients} clients streaming",
        target="",
        measured=f"{1e3 * (own_s - plain_s) / clients:.1f} ms a client in a commit, {size / 1e3:.0f} kB at rest",
        met=None,
        detail=f"commits busy for {1e3 * own_s:.0f} ms, {1e3 * plain_s:.1f} ms without (means over {seconds:.0f} s)",
    )


async def _commit_s(folder: Path, dim: int, clients: int, seconds: float, *, own: bool) -> tuple[float, float]:
    """Mean seconds that a commit keeps disk and processor busy, and mean bytes of a client at rest."""
    random = np.random.default_rng(0)
    batches = [(clustered_features(random, LABELS, dim), NAMES) for _ in range(64)]
    declaration = tiny_declaration(folder, "tiny", dim, privacy={"client_sums": own})
    async with engine(folder, declaration) as (running, model):
        ending_s = time.monotonic() + seconds

        def stream() -> Iterator[LabelledFeatures]:
            for batch in itertools.cycle(batches):
                if time.monotonic() > ending_s:
                    return
                yield batch

        names = [f"client-{number}" for number in range(clients)]
        await asyncio.gather(*(learn(running, model, stream(), client=name) for name in names))
        commits, busy_s = model.writer.disk_share
    return busy_s / max(1, commits), _bytes_a_client(folder) if own else 0.0


def _bytes_a_client(folder: Path) -> float:
    with closing(sqlite3.connect(folder / "data" / "everlearn.sqlite")) as database:
        return float(database.execute("SELECT avg(size) FROM client_sums").fetchone()[0])
