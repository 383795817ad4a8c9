"""Samples with several labels and with values are counted once through kill -9, bit for bit."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.e2e.test_server_tasks import DIGITS, PATIENTS
from tests.real_server import RealServer

from everlearn_client import Durable, LearnEvent, LearnReport, Tensors
from everlearn_client.targets import Truth

BATCHES = 60


def batches(task: str, pause_s: float) -> Iterator[tuple[Tensors, Truth]]:
    """The same batches every time, slowly enough to be interrupted."""
    for number in range(BATCHES):
        time.sleep(pause_s)
        rows = slice(7 * number, 7 * number + 7)
        if task == "multilabel":
            yield Tensors(DIGITS.values[rows]), DIGITS.sets(rows)
        else:
            yield Tensors(PATIENTS.values[rows]), PATIENTS.truth[rows]


@pytest.mark.parametrize("task", ["multilabel", "regression"])
def test_killed_servers_leave_the_same_sums_as_an_undisturbed_one(task: str, tmp_path: Path) -> None:
    data = DIGITS if task == "multilabel" else PATIENTS
    reports, moved, killed_now = list[LearnReport](), threading.Semaphore(0), threading.Semaphore(0)
    kills = iter(range(2))
    with RealServer(tmp_path / "data") as server:
        server.declare(data.declaration("killed"))
        server.declare(data.declaration("calm"))

        def hear(event: LearnEvent) -> None:
            if isinstance(event, Durable) and next(kills, None) is not None:
                moved.release()
                assert killed_now.acquire(timeout=240)  # however late the kill comes, it is not done by then

        def learn() -> None:
            with server.client() as client:
                source = batches(task, 0.03)
                reports.append(client.learn("killed", source, client_id="a", on_event=hear, retry_for_s=240, window=8))

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
            client.learn("calm", batches(task, 0.0), client_id="a")
            killed, calm = (client.models.get(name).status for name in ("killed", "calm"))
    assert reports[0].reconnects >= 1
    assert killed.sample_count == calm.sample_count == 7 * BATCHES
    assert killed.memory_digest == calm.memory_digest
    assert killed.prequential.tested == 7 * BATCHES
