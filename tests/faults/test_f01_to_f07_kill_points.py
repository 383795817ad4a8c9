"""Rows F1 to F7: killed after each step of the commit protocol; the clients make one plain call each."""

from __future__ import annotations

import signal
from pathlib import Path

from tests.faults.parts import kill_points
from tests.faults.parts.bad_network import progress_s
from tests.faults.parts.kill_points import killed
from tests.faults.scene import Scene

KILLS = kill_points.SHORT["kills"]


def test_f01_before_received_nothing_is_there_and_it_is_sent_again(tmp_path: Path) -> None:
    killed(tmp_path, ["arrived", "received_due"] * KILLS)


def test_f02_after_received_before_commit_it_is_sent_again(tmp_path: Path) -> None:
    killed(tmp_path, ["received_sent"] * KILLS)


def test_f03_a_half_written_blob_goes_and_the_batches_are_sent_again(tmp_path: Path) -> None:
    kills = killed(tmp_path, ["blob_half", "blob_written"] * KILLS, blobs=True)
    assert [kill.temporary for kill in kills] == [1] * len(kills)


def test_f04_after_the_rename_before_commit_the_orphan_goes_and_the_batches_are_sent_again(tmp_path: Path) -> None:
    kills = killed(tmp_path, ["blob_renamed", "begun", "before_commit"] * KILLS, blobs=True)
    assert min(kill.orphans for kill in kills) >= 1
    assert max(kill.ahead for kill in kills) == 0


def test_f06_after_commit_before_durable_left_it_is_known_and_counted_once(tmp_path: Path) -> None:
    kills = killed(tmp_path, ["committed", "durable_due"] * KILLS)
    assert min(kill.ahead for kill in kills) > 0


def test_f07_after_durable_there_is_nothing_to_do(tmp_path: Path) -> None:
    killed(tmp_path, ["durable_sent"] * KILLS)


def test_control_a_server_that_says_durable_before_it_commits_is_caught_at_rest(tmp_path: Path) -> None:
    scene = Scene(tmp_path, batches=2000)
    gate = tmp_path / "gate"
    scene.server.fault = f"early:{gate}+kill:begun:1"
    scene.go(freely=False)
    scene.server.launch()
    progress_s(scene)
    gate.touch()
    assert scene.feed_until_dead() == -signal.SIGKILL
    broken = scene.at_rest()
    assert any("kept" in each for each in broken), broken
    scene.give_up()
