"""Samples of a step are counted once through kill -9, as what is learned of them is."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tests import tiny
from tests.real_server import RealServer

from everlearn_client import Batch, Durable, LearnEvent, LearnReport
from everlearn_protos.v1 import models_pb2

STEPS = ("kitchen",) * 25 + ("garage",) * 20 + ("kitchen",) * 15


def batches(pause_s: float) -> Iterator[Batch]:
    """The same every time, slowly enough to be interrupted."""
    for number, step in enumerate(STEPS):
        time.sleep(pause_s)
        labels = (0, 1) if step == "kitchen" else (2, 3)
        images = np.concatenate([tiny.images(4, label, seed=number) for label in labels])
        yield Batch(images, [f"c{label}" for label in labels for _ in range(4)], step)


def test_killed_servers_leave_the_same_counts_as_an_undisturbed_one(tmp_path: Path) -> None:
    backbone = tiny.write_backbone(tmp_path)
    reports, moved, killed_now = list[LearnReport](), threading.Semaphore(0), threading.Semaphore(0)
    kills = iter(range(2))
    with RealServer(tmp_path / "data") as server:
        for name in ("killed", "calm"):
            server.declare(tiny.declaration(backbone, name=name))

        def hear(event: LearnEvent) -> None:
            if isinstance(event, Durable) and next(kills, None) is not None:
                moved.release()
                assert killed_now.acquire(timeout=240)  # however late the kill comes, it is not done by then

        def learn() -> None:
            with server.client() as client:
                reports.append(
                    client.learn("killed", batches(0.03), client_id="a", on_event=hear, retry_for_s=240, window=8)
                )

        learner = threading.Thread(target=learn, daemon=True)  # a server that does not start again ends the test
        learner.start()
        for _ in range(2):
            assert moved.acquire(timeout=240)
            server.kill()
            killed_now.release()
            # Not `start`, whose own client would share the learner's connection and wait for its next attempt.
            server.launch()
        learner.join(timeout=240)
        with server.client() as client:
            client.learn("calm", batches(0.0), client_id="a")
            killed, calm = (client.models.get(name).status for name in ("killed", "calm"))
    assert reports[0].reconnects >= 1
    assert killed.memory_digest == calm.memory_digest
    assert cells_of(killed) == cells_of(calm)
    assert [row.samples for row in killed.report.steps.steps] == [40 * 8, 20 * 8]


def cells_of(status: models_pb2.ModelStatus) -> list[tuple[int, int, int]]:
    """How many samples are in each cell. How many of them were right depends on the version that was live."""
    return [(cell.after, cell.on, cell.tested) for cell in status.report.steps.cells]
