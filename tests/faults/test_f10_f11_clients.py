"""Rows F10 and F11: a client that dies and comes back, and two connections of one client."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from tests.faults.forked import ROOT
from tests.faults.learners import MODEL, Crowd
from tests.faults.proxy import Proxy
from tests.faults.scene import Plain, Scene, stream

from everlearn_client import Client, Fenced
from everlearn_client.errors import EverlearnClientError
from everlearn_client.samples import Batch

KILLS = 3
EACH = 200
"""Batches for each life of a client: its window is 64 of them."""
SAMPLES = 4
"""In a batch of a scene's."""
WITHIN_S = 120.0


def test_f10_a_client_that_is_killed_and_comes_back_counts_once(tmp_path: Path) -> None:
    scene = Scene(tmp_path, clients=1, batches=EACH * (KILLS + 1))
    scene.server.start()
    (learner,) = scene.learners
    command = [sys.executable, "-m", "tests.faults.edge", scene.server.address, learner.client_id]
    for life in range(KILLS + 1):
        # It hears no more once so many are durable: however late it is killed, the next one has something to send.
        deaf_from = EACH * life + EACH // 2
        sizes = [str(EACH * (KILLS + 1)), str(deaf_from) if life < KILLS else "0", str(scene.backbone)]
        with subprocess.Popen([*command, *sizes], cwd=ROOT, stdout=subprocess.PIPE, text=True) as edge:
            assert edge.stdout is not None
            if life < KILLS:
                learner.acknowledged = max(learner.acknowledged, int(edge.stdout.readline()))
                edge.kill()
            else:
                assert edge.wait(WITHIN_S) == 0
    scene.crowd = Crowd([], scene.server.address)
    scene.calm_end()


def test_f10_what_a_dead_connection_still_says_is_fenced(tmp_path: Path) -> None:
    said_late(tmp_path)


def test_control_a_server_that_does_not_fence_learns_what_a_dead_connection_says(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="differs"):
        said_late(tmp_path, fault="unfenced")


def said_late(folder: Path, *, fault: str = "") -> None:
    """The first life's connection falls silent and stands; the second life takes over; then the first is heard again,
    with batches under numbers that the second life uses for others."""
    scene = Scene(folder, clients=1, batches=100)
    (learner,) = scene.learners
    learner.first_sequence = 1
    others, rows = stream(7, 10, scene.trunk)
    late = Life(learner, [*learner.batches[:20], *others], [*learner.features[:20], *rows])
    scene.server.fault = fault
    scene.server.start()
    with Proxy() as proxy, scene.server.client() as looker:
        proxy.target = scene.server.address

        def learned(batches: int) -> bool:
            # Asked of the server: a client hears nothing while it waits for its next batch.
            return looker.models.get(MODEL).status.sample_count == SAMPLES * batches

        late.begin(proxy.address, batches=20)
        wait_until(lambda: learned(20))
        proxy.holds_requests = True
        late.allow(10)
        wait_until(lambda: late.sent == 30)  # answers to the 20 come through, and make room for ten more
        proxy.holds_answers = True
        scene.go(freely=False)
        scene.feed(21)
        wait_until(lambda: learned(21))  # it has taken over; the numbers from 21 on are its own
        proxy.holds_requests = proxy.holds_answers = False
        late.allow(1)
        if fault:
            wait_until(lambda: late.ended.is_set() or learned(30) or learned(31))
        else:
            late.ended.wait(WITHIN_S)
        scene.calm_end(all_of_them=True)
        assert isinstance(late.failure, Fenced), late.failure


@pytest.mark.parametrize("gap_s", [0.0, 0.2])
def test_f11_of_two_connections_of_one_client_the_older_is_fenced_and_each_batch_counts_once(
    tmp_path: Path, gap_s: float
) -> None:
    connected_twice(tmp_path, gap_s=gap_s)


def test_control_a_server_that_does_not_fence_keeps_the_older_connection(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="is not fenced"):
        connected_twice(tmp_path, fault="unfenced", patience_s=2)


def connected_twice(folder: Path, *, gap_s: float = 0.0, fault: str = "", patience_s: float = WITHIN_S) -> None:
    """The same batches from two processes of a client, the second begun while the first sends."""
    scene = Scene(folder, clients=1, batches=300)
    (learner,) = scene.learners
    learner.first_sequence = 1
    scene.server.fault = fault
    scene.server.start()
    with Proxy() as proxy:  # once it is gone, so is a connection that nobody has ended
        proxy.target = scene.server.address
        older = Life(learner, learner.batches, learner.features)
        older.begin(proxy.address, batches=20)
        wait_until(lambda: older.sent == 20)
        time.sleep(gap_s)
        scene.crowd.start()
        older.allow(100)
        scene.crowd.join()
        older.ended.wait(patience_s)
        assert isinstance(older.failure, Fenced), f"the older connection is not fenced: {older.failure}"
    scene.calm_end()


class Life(Plain):
    """Another process of the same client, as its user sees it: on a thread of its own."""

    def __init__(self, learner: Plain, batches: list[Batch], features: list[npt.NDArray[np.float32]]) -> None:
        super().__init__(learner.client_id, list(batches), list(features), learner.feature_digest)
        self.first_sequence = 1
        self.allowance = threading.Semaphore(0)
        self.ended = threading.Event()

    def begin(self, address: str, *, batches: int) -> None:
        """Sends so many, and waits for more to be allowed."""
        self.allow(batches)
        threading.Thread(target=self._live, args=(address,), daemon=True).start()

    def allow(self, batches: int) -> None:
        """So many more may be sent, one after the other."""
        assert self.allowance is not None
        self.allowance.release(batches)

    def _live(self, address: str) -> None:
        with Client(address, client_id=self.client_id) as client:
            options = {"first_sequence": 1, "feature_digest": self.feature_digest, "retry_for_s": 1.0}
            try:
                client.learn(MODEL, self._taken(), on_event=self.hear, **options)  # type: ignore[arg-type]
            except EverlearnClientError as error:
                self.failure = error
        self.ended.set()


def wait_until(holds: Callable[[], bool]) -> None:
    """Within two minutes."""
    until_s = time.monotonic() + WITHIN_S
    while not holds():
        assert time.monotonic() < until_s, "it does not come to that"
        time.sleep(0.01)
