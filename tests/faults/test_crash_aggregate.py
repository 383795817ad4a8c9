"""Tier `aggregate` under `kill -9`: every batch once, and never two states at rest closer than the minimum."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from threading import Semaphore

import pytest
from tests import tiny
from tests.e2e import impatient_server
from tests.faults.learners import Crowd, Learner, at_rest, expected_sums, make_batches, violations
from tests.faults.test_crash import crowd_of, kill_at_random
from tests.real_server import RealServer

LEAST = 24
PRIVACY = {"tier": "aggregate", "min_samples": LEAST, "min_class_samples": 8}


def states_at_rest(folder: Path) -> tuple[list[int], list[int]]:
    """Samples in each commit that brought any, and in each stored version, ascending; of a server that has ended."""
    with closing(sqlite3.connect(folder / "everlearn.sqlite")) as database:
        commits = database.execute("SELECT DISTINCT sample_count FROM commit_log ORDER BY sample_count").fetchall()
        versions = database.execute("SELECT DISTINCT sample_count FROM version ORDER BY sample_count").fetchall()
    return [0, *(count for (count,) in commits if count)], [0, *(count for (count,) in versions)]


def closest(states: list[int]) -> int:
    return min(after - before for before, after in pairwise(states))


def run(folder: Path, backbone: Path, *, batches: int, kills: int, rounds: int = 1, **spec: object) -> list[Learner]:
    """Four learners through kills, and at the end of each round one more that brings as many samples as the others may
    wait for: so that each round ends with a commit, however many were made of it before."""
    trunk, learners = tiny.trunk_of(backbone), list[Learner]()
    with RealServer(folder, program=[str(Path(impatient_server.__file__))]) as server:
        server.declare(tiny.declaration(backbone, **spec))
        for turn in range(rounds):
            allowance = Semaphore(0)
            crowd_learners = crowd_of(trunk, batches=batches, cut_probability=1 / 60, allowance=allowance)
            for each in crowd_learners:
                each.client_id += f"-{turn}"
            made, features = make_batches(9 + turn, 1, trunk, samples=LEAST)
            last = Learner(f"last-{turn}", batches=made, features=features, feature_digest=trunk.feature_digest)
            crowd, closing_crowd = Crowd(crowd_learners, server.address), Crowd([last], server.address)
            crowd.start()
            kill_at_random(server, crowd, allowance, times=kills, seed=20261121 + turn)
            while any(max(each.received_here, each.acknowledged) < len(each.batches) for each in crowd_learners):
                time.sleep(0.01)
            closing_crowd.start()
            crowd.join()
            closing_crowd.join()
            learners += [*crowd_learners, last]
        assert server.terminate() == 0
    assert violations(learners, at_rest(folder), expected_sums(learners, trunk)) == []
    return learners


@pytest.mark.slow
def test_a_server_that_is_killed_again_and_again_counts_each_batch_once_and_holds_the_minimum(tmp_path: Path) -> None:
    backbone = tiny.write_backbone(tmp_path, 16)
    run(tmp_path / "data", backbone, batches=20, kills=2, rounds=3, privacy=PRIVACY)
    commits, versions = states_at_rest(tmp_path / "data")
    assert len(commits) > 3
    assert len(versions) > 1
    assert closest(commits) >= LEAST
    assert closest(versions) >= LEAST


@pytest.mark.slow
def test_control_without_the_tier_states_at_rest_are_closer(tmp_path: Path) -> None:
    backbone = tiny.write_backbone(tmp_path, 16)
    run(tmp_path / "data", backbone, batches=60, kills=1)
    with RealServer(tmp_path / "data") as server, server.client() as client:
        for _ in range(2):  # alone, so that the group of neither has another in it
            client.learn("tiny", [(tiny.images(4, 0), ["0"] * 4)], client_id="alone")
    assert closest(states_at_rest(tmp_path / "data")[0]) < LEAST
