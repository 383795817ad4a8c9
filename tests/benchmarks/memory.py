"""Resident memory of the server while it learns: sampled each second, slope by least squares after the warm-up.

Features of 1280 dimensions and real images (JPEG), each as a stream of its own at a steady rate, so that minutes pass.
"""

from __future__ import annotations

import subprocess
import time

import numpy as np
import numpy.typing as npt
import psutil
from tests.benchmarks.scene import DIM, Scene, ServerProcess, child
from tests.benchmarks.table import Row

BATCH = 32
TARGET_MB_A_MINUTE = 1.0
WARM_UP_S = 60
"""Not looked at: caches, the allocator's arenas and the first heads grow there."""


Floats = npt.NDArray[np.float64]


def measure(scene: Scene, *, quick: bool) -> list[Row]:
    """50,000 samples as features, 5,000 as images."""
    with scene.server("memory") as server, server.client() as client:
        client.models.apply(scene.declaration("lite0", 96))
        plans = (
            ("features", DIM, 1_600 if quick else 50_000, 8 if quick else 170, 2 if quick else WARM_UP_S),
            ("images", 96, 640 if quick else 5_000, 6 if quick else 60, 2 if quick else 5),
        )
        return [_row(scene, server, *plan) for plan in plans]


def _row(
    scene: Scene, server: ServerProcess, form: str, size: int, samples: int, seconds: int, warm_up_s: float
) -> Row:
    batches = -(-samples // BATCH)
    scene.tell(f"{samples} samples as {form} over {seconds} s")
    arguments = (server.address, "lite0", form, str(size), str(batches), str(batches / seconds))
    with child("learn_load", *arguments) as load:
        assert load.stdout is not None
        load.stdout.readline()
        at_s, resident_mb = _watch(load, server.pid)
    kept = at_s >= warm_up_s
    minutes, held_mb = at_s[kept] / 60, resident_mb[kept]
    slope_mb_min, offset_mb = np.polyfit(minutes, held_mb, 1)
    error_mb_min = (held_mb - slope_mb_min * minutes - offset_mb).std() / np.sqrt(
        np.sum((minutes - minutes.mean()) ** 2)
    )
    half = len(held_mb) // 2
    return Row(
        group="memory",
        what=f"resident memory over {batches * BATCH:,} samples learned as {form}",
        target=f"< {TARGET_MB_A_MINUTE:.0f} MB a minute after warm-up",
        measured=f"{slope_mb_min:+.2f} MB a minute",
        met=bool(slope_mb_min < TARGET_MB_A_MINUTE),
        detail=f"least squares over {at_s[-1] - warm_up_s:.0f} s after {warm_up_s:.0f} s, standard error "
        f"{error_mb_min:.2f} (samples taken as independent; the allocator's steps are not); median of the halves "
        f"{np.median(held_mb[:half]):.0f} and {np.median(held_mb[half:]):.0f} MB; {resident_mb[0]:.0f} MB at first, "
        f"{held_mb.min():.0f} to {held_mb.max():.0f} MB after the warm-up",
    )


def _watch(load: subprocess.Popen[str], pid: int) -> tuple[Floats, Floats]:
    process = psutil.Process(pid)
    begun_s = time.monotonic()
    at_s, resident_mb = [], []
    while load.poll() is None:
        at_s.append(time.monotonic() - begun_s)
        resident_mb.append(process.memory_info().rss / 1e6)
        time.sleep(1.0)
    if load.returncode:
        raise RuntimeError("the learner failed; its error is above")
    return np.array(at_s), np.array(resident_mb)
