"""What a user writes, and all that it survives: there is no line of recovery in here."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from tests import tiny
from tests.faults.disk import Disk
from tests.faults.proxy import Proxy
from tests.faults.scene import Scene

from everlearn_client import Client, LearnReport, Unavailable

STEP_S = 0.02
LONGEST = 100_000


class Camera:
    """Labelled pictures, until they are enough."""

    def __init__(self, *, given: int = LONGEST) -> None:
        self.given, self.is_enough = given, False

    def __iter__(self) -> Iterator[tuple[npt.NDArray[np.uint8], list[str]]]:
        for turn in range(self.given):
            if self.is_enough:
                self.given = turn
                return
            time.sleep(STEP_S)
            yield tiny.images(2, turn % 3, seed=turn), [f"c{turn % 3}"] * 2


def test_a_plain_call_survives_kills_a_failing_disk_a_power_cut_and_the_network(tmp_path: Path) -> None:
    camera, reports = Camera(), list[LearnReport]()
    with Disk(tmp_path / "disk") as disk, Proxy() as proxy:
        scene = Scene(tmp_path, clients=0, data=disk.folder / "data")
        proxy.target, server = scene.server.address, scene.server
        disk.settle()

        def user() -> None:
            with Client(proxy.address, client_id="camera-7") as client:
                reports.append(client.learn("tiny", camera))

        thread = threading.Thread(target=user, daemon=True)
        thread.start()
        for fault in ("kill:committed:1", "kill:received_sent:2", "kill:before_commit:1", "raise:3"):
            server.fault = fault
            server.launch()
            assert server.wait() in (-9, 75)
        server.fault = ""
        server.start()
        disk.plan(call="fsync", nth=2)
        assert server.wait() == 75
        disk.cut()
        server.start()
        disk.plan(call="fsync", nth=2, error="cut", pid=server.pid)
        assert server.wait() == -9
        disk.cut(survives=0.5)
        for trouble in (proxy.reset, proxy.cut, lambda: None):
            server.start()
            moved = disk.told().calls
            while disk.told().calls < moved + 60:  # it learns
                time.sleep(0.02)
            trouble()
            assert server.terminate() == 0  # a deployment
        server.start()
        camera.is_enough = True
        thread.join(240)
        assert (reports[0].durable_batches, reports[0].rejected_batches) == (camera.given, 0)
        assert reports[0].reconnects >= 6
        with server.client() as client:
            status = client.models.get("tiny").status
            client.learn("tiny", Camera(given=camera.given), client_id="calm")
            twice = client.models.get("tiny").status
        assert server.terminate() == 0
    assert status.sample_count == status.prequential.tested == 2 * camera.given
    assert twice.sample_count == 4 * camera.given


def test_control_a_call_that_may_not_try_again_does_not_survive(tmp_path: Path) -> None:
    scene = Scene(tmp_path, clients=0)
    scene.server.fault = "kill:received_sent:2"
    scene.server.start()
    with scene.server.client(client_id="camera-7") as client, pytest.raises(Unavailable):
        client.learn("tiny", Camera(), retry_for_s=0)
    assert scene.server.wait() == -9
