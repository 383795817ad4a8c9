"""A learner in a process of its own, through the public client.

    python -m tests.benchmarks.learn_load ADDRESS MODEL images SIZE BATCHES RATE
    python -m tests.benchmarks.learn_load ADDRESS MODEL features DIM BATCHES RATE

Batches of 32 with ten labels; RATE batches a second at most, 0 = as fast as credits allow. Once the server knows the
first batch it prints `ready`, at the end one line of JSON: images, seconds, and the means of the stages' times.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tests.benchmarks.scene import Scene, clustered_features, jpeg_files

from everlearn_client import Batch, Client, Features, LearnEvent, Received

BATCH = 32
LABELS = [str(row % 10) for row in range(BATCH)]


def main() -> None:
    """Streams, then reports."""
    address, model, form = sys.argv[1:4]
    size, batches, rate = int(sys.argv[4]), int(sys.argv[5]), float(sys.argv[6])
    times: list[Received] = []
    durable_s: list[float] = []
    with Client(address, timeout_s=120) as client:
        digest = client.models.get(model).status.input.feature_digest if form == "features" else ""
        samples = _features(size) if form == "features" else _images(size)
        begun_s: list[float] = []

        def stream() -> Iterator[Batch]:
            for index in range(batches):
                if rate and begun_s:
                    time.sleep(max(0.0, begun_s[0] + index / rate - time.monotonic()))
                begun_s[:] = begun_s or [time.monotonic()]
                yield Batch(samples[index % len(samples)], LABELS)

        def heard(event: LearnEvent) -> None:
            if isinstance(event, Received):
                if not times:
                    sys.stdout.write("ready\n")
                    sys.stdout.flush()
                times.append(event)
                durable_s.append(time.monotonic())

        client.learn(model, stream(), feature_digest=digest, on_event=heard)
    stages = ("decode_ms", "queue_ms", "trunk_ms", "test_ms", "integrate_ms")
    # From the first answer to the last: without opening, without the drain at the end.
    told = {"images": BATCH * (len(times) - 1), "seconds": durable_s[-1] - durable_s[0]}
    told |= {stage: float(np.mean([getattr(event.times, stage) for event in times])) for stage in stages}
    sys.stdout.write(json.dumps(told) + "\n")
    sys.stdout.flush()


def _features(dim: int) -> list[Features]:
    random = np.random.default_rng(0)
    return [Features(clustered_features(random, [row % 10 for row in range(BATCH)], dim)) for _ in range(32)]


def _images(size: int) -> list[list[bytes]]:
    """JPEG files: 32 images of 224 px do not fit a message as raw bytes."""
    files = jpeg_files(Scene(Path()), size, 8 * BATCH)
    return [files[start : start + BATCH] for start in range(0, len(files), BATCH)]


if __name__ == "__main__":
    main()
