"""Row F8, a disk without room: below the floor nothing is taken in, predictions go on; a start says what is wrong."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from tests import tiny
from tests.faults.disk import Disk
from tests.faults.learners import MODEL
from tests.faults.parts import failing_starts
from tests.faults.scene import PATIENCE_S, Scene

from everlearn_client import Overloaded, Reconnecting
from everlearn_client.samples import Features

FLOOR = 8 << 20


def test_f08_below_the_floor_it_predicts_and_does_not_learn_until_there_is_room(tmp_path: Path) -> None:
    with Disk(tmp_path / "disk") as disk:
        scene = Scene(tmp_path, clients=1, batches=2000, data=disk.folder / "data")
        disk.settle()
        scene.server.arguments = ["--min-free-bytes", str(FLOOR)]
        scene.server.start()
        scene.go(freely=False)
        while scene.durable < 50:  # and so there is a version that predicts
            scene.trickle()
            time.sleep(0.01)
        disk.plan(limit_bytes=disk.told().used + FLOOR // 2)
        (learner,) = scene.learners
        end_s = time.monotonic() + PATIENCE_S
        while not any(isinstance(event, Reconnecting) for event in learner.events):
            assert time.monotonic() < end_s
            scene.trickle()
            time.sleep(0.05)
        told = next(event.error for event in learner.events if isinstance(event, Reconnecting))
        assert isinstance(told, Overloaded)
        assert (told.reason, told.retry_after_s) == ("DISK_FULL", 5.0)
        assert "Free some space" in told.message
        with scene.server.client() as client:
            assert client.predict(MODEL, Features(learner.features[0])).top
            with pytest.raises(Overloaded, match="takes nothing in"):
                client.models.apply(tiny.declaration(tiny.write_backbone(tmp_path, 8), name="another"))
        disk.plan()
        scene.calm_end()  # the client comes back by itself
        assert learner.reconnects


def test_f08_without_a_floor_a_full_disk_ends_the_server_with_75_and_room_mends_it(tmp_path: Path) -> None:
    with Disk(tmp_path / "disk") as disk:
        scene = Scene(tmp_path, batches=3000, data=disk.folder / "data")
        disk.settle()
        scene.server.arguments = ["--min-free-bytes", "0"]
        scene.go(freely=False)
        scene.server.start()
        disk.plan(limit_bytes=disk.told().used + (1 << 20))
        assert scene.feed_until_dead() == 75
        assert scene.at_rest() == []
        scene.server.launch()
        assert scene.server.wait() in (1, 75)
        assert "Traceback" not in scene.server.log
        disk.plan()
        scene.calm_end()


def test_f08_whichever_storage_call_of_a_first_start_fails_the_next_start_succeeds(tmp_path: Path) -> None:
    assert int(str(failing_starts.run(tmp_path, **failing_starts.SHORT)["calls of a first start"])) > 90


def test_f08_a_server_that_cannot_begin_for_lack_of_room_says_so_in_a_line(tmp_path: Path) -> None:
    with Disk(tmp_path / "disk") as disk:
        scene = Scene(tmp_path, clients=0)
        scene.server.folder = disk.folder / "new"
        disk.plan(limit_bytes=20)
        scene.server.launch()
        assert scene.server.wait() == 1
        assert scene.server.log.startswith("everlearn-server: cannot ")
        assert len(scene.server.log.splitlines()) == 1
