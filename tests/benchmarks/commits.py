"""Group commits: which share of the time they keep disk or processor busy, in a stream that never rests (SQLite)."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Iterator, Sequence

import numpy as np
from tests.benchmarks.embedded import LabelledFeatures, engine, learn, tiny_declaration
from tests.benchmarks.scene import DIM, Scene, clustered_features
from tests.benchmarks.table import Row

BATCH = 32
LABELS = [row % 10 for row in range(BATCH)]
TARGET = 0.10


def measure(scene: Scene, *, quick: bool) -> list[Row]:
    """At a small and at a real dimension."""
    seconds = 0.7 if quick else 20.0
    return [asyncio.run(_measure(scene, dim, seconds)) for dim in (64, DIM)]


def _for_seconds(batches: Sequence[LabelledFeatures], ending_s: float) -> Iterator[LabelledFeatures]:
    for batch in itertools.cycle(batches):
        if time.monotonic() > ending_s:
            return
        yield batch


async def _measure(scene: Scene, dim: int, seconds: float) -> Row:
    scene.tell(f"streaming features of {dim} dimensions for {seconds:.0f} s")
    random = np.random.default_rng(0)
    names = tuple(str(label) for label in LABELS)
    batches = [(clustered_features(random, LABELS, dim), names) for _ in range(64)]
    folder = scene.folder / f"commits-{dim}"
    async with engine(folder, tiny_declaration(folder, "tiny", dim)) as (running, model):
        begun_s = time.monotonic()
        sent = await learn(running, model, _for_seconds(batches, begun_s + seconds))
        took_s = time.monotonic() - begun_s
        commits, busy_s = model.writer.disk_share
        size = len(model.writer.learner.to_bytes())
    share = busy_s / took_s
    return Row(
        group="commits",
        what=f"busy with group commits, d = {dim}",
        target=f"<= {TARGET:.0%} of the time",
        measured=f"{share:.1%}",
        met=share <= TARGET * 1.05,
        detail=f"{commits / took_s:.1f} commits/s of {size / 1e6:.2f} MB, {1e3 * busy_s / max(1, commits):.1f} ms each "
        f"(mean); {sent * BATCH / took_s:.0f} samples/s of features for {took_s:.0f} s",
    )
