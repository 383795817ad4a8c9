"""Late labels: bytes that a waiting sample takes beside its features, and what waiting costs a prediction."""

from __future__ import annotations

import time
from functools import partial

import numpy as np
from tests.benchmarks.scene import DIM, Scene
from tests.benchmarks.table import Row

from everlearn.spec.late_labels import LateLabels
from everlearn.values import FeatureScale
from everlearn_server.engine.batches import Derived
from everlearn_server.engine.waiting_room import WaitingRoom

GROUP = "late_labels"
_DAY_S = 86_400.0


def measure(scene: Scene, *, quick: bool = False) -> list[Row]:
    """Resident memory of a room that fills, and a label of each sample after a simulated day."""
    count = 2_000 if quick else 50_000
    return [_bytes(scene, count, DIM), _bytes(scene, count, 64), _day(scene, 1_000 if quick else 20_000)]


def _bytes(scene: Scene, count: int, dim: int) -> Row:
    scene.tell(f"{count:,} samples of {dim} features wait")
    room = WaitingRoom(LateLabels(capacity=count), _scale(dim))
    give = partial(room.give, _features(dim), ["label"] * 50, client="camera")
    give()
    before = _resident_bytes()
    for _ in range(0, count - 50, 50):
        give()
    held, features = (_resident_bytes() - before) / (count - 50), 4 * dim
    return Row(
        group=GROUP,
        what=f"RAM a waiting sample, {dim} features",
        measured=f"{held / features:.2f} x its features ({held:,.0f} B)",
        target="<= 2 x features",
        met=held <= 2 * features,
        detail=f"resident memory of the process over {count:,} samples in requests of 50; features are {features:,} B "
        f"as float32, and {held / (2 * dim):.2f} x the {2 * dim:,} B that they are quantised",
    )


def _day(scene: Scene, count: int) -> Row:
    scene.tell("labels after a day")
    now_s = [0.0]
    room = WaitingRoom(LateLabels(capacity=count), _scale(DIM), clock_s=lambda: now_s[0])
    features_Bd, ids, given_s = _features(DIM), list[str](), 0.0
    for _ in range(0, count, 50):
        begun_s = time.perf_counter()
        ids += room.give(features_Bd, ["label"] * 50)
        given_s += time.perf_counter() - begun_s
    now_s[0], found, begun_s = _DAY_S, 0, time.perf_counter()
    for first in range(0, count, 50):
        some = tuple(ids[first : first + 50])
        asked = Derived(
            client="c", epoch=1, sequence=1, features_Bd=features_Bd[:0], labels=("label",) * 50, sample_ids=some
        )
        if room.refusal(asked) is None:
            room.joined(some, asked.labels)
            found += len(some)
    joined_s, figures = time.perf_counter() - begun_s, room.figures()
    return Row(
        group=GROUP,
        what="labels after 1 day (simulated time) that find their sample",
        measured=f"{found / count:.0%} of {count:,}",
        target="learned",
        met=found == count and figures.delay_median_s == _DAY_S,
        detail=f"{given_s / count * 1e6:.1f} us a prediction for taking it in, {joined_s / count * 1e6:.1f} us a label "
        f"for finding it, {DIM} features; tests/e2e/test_server_late_labels.py has the whole server learn them",
    )


def _scale(dim: int) -> FeatureScale:
    return FeatureScale(step_d=np.full(dim, 0.01, np.float32))


def _features(dim: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.random.default_rng(0).normal(size=(50, dim)).astype(np.float32)


def _resident_bytes() -> int:
    with open("/proc/self/smaps_rollup") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Rss:"))
