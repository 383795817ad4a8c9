"""`kill -9` at random points of a stream: no durable batch lost, none counted twice, the sums bit-identical."""

from __future__ import annotations

import random
import time
from itertools import pairwise
from pathlib import Path
from threading import Semaphore

import pytest
from tests import tiny
from tests.faults.learners import Crowd, Learner, at_rest, expected_sums, make_batches, violations
from tests.real_server import RealServer

from everlearn.values import Trunk

FAULTY = str(Path(__file__).with_name("faulty_server.py"))
PLAIN = ("-m", "everlearn_server.cli")
RESTART_S = 6.0


def crowd_of(
    trunk: Trunk, *, batches: int, cut_probability: float = 0.0, allowance: Semaphore | None = None
) -> list[Learner]:
    """Four learners: three stream features, one images."""
    learners = []
    for index in range(4):
        as_images = index == 3
        made, features = make_batches(index, batches, trunk, as_images=as_images, samples=2 if as_images else 4)
        learners.append(
            Learner(
                client_id=f"learner-{index}",
                batches=made,
                features=features,
                feature_digest="" if as_images else trunk.feature_digest,
                cut_probability=cut_probability,
                allowance=allowance,
            )
        )
    return learners


def kill_at_random(
    server: RealServer, crowd: Crowd, allowance: Semaphore, *, times: int, seed: int
) -> list[tuple[float, float]]:
    """Kills all along the stream, at random moments of it; returns (wall, CPU) seconds of each restart."""
    chance, starts = random.Random(seed), []
    total = sum(len(learner.batches) for learner in crowd.learners)
    marks = sorted(chance.randrange(total) for _ in range(times))
    for before, mark in pairwise([0, *marks]):
        allowance.release(mark - before)
        aim, patience_s = crowd.received + chance.randint(0, mark - before), time.monotonic() + 2
        while crowd.received < aim and time.monotonic() < patience_s:
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.03))
        server.kill()
        wall_s = server.start()
        starts.append((wall_s, server.cpu_s))
    allowance.release(total - marks[-1])
    return starts


@pytest.mark.slow
@pytest.mark.parametrize(
    # A hundred kills are test_kills.py's; here clients give connections up, too, and one sends pictures.
    ("dim", "batches", "kills"),
    [(64, 200, 8), (1280, 60, 6)],
    ids=["cuts", "long commits"],
)
def test_a_server_killed_again_and_again_counts_every_batch_once(
    tmp_path: Path, dim: int, batches: int, kills: int, capsys: pytest.CaptureFixture[str]
) -> None:
    backbone = tiny.write_backbone(tmp_path, dim)
    trunk, seed, allowance = tiny.trunk_of(backbone), 20261121, Semaphore(0)
    learners = crowd_of(trunk, batches=batches, cut_probability=1 / 150, allowance=allowance)
    with RealServer(tmp_path / "data") as server:
        server.declare(tiny.declaration(backbone))
        crowd = Crowd(learners, server.address)
        crowd.start()
        starts = kill_at_random(server, crowd, allowance, times=kills, seed=seed)
        crowd.join()
        with server.client() as client:
            digest = client.models.get("tiny").status.memory_digest
        assert server.terminate() == 0
    with capsys.disabled():
        walls = " ".join(f"{wall_s:.2f}" for wall_s, _ in starts)
        print(f"\n{kills} kills (seed {seed}), {crowd.received} answers for {4 * batches} batches, ", end="")
        print(f"{sum(learner.cuts for learner in learners)} cuts; restarts took {walls} s, ", end="")
        print(f"{max(cpu_s for _, cpu_s in starts):.2f} s of CPU at most")
    expected = expected_sums(learners, trunk)
    assert violations(learners, at_rest(tmp_path / "data"), expected) == []
    assert digest == expected.digest()
    # What a start costs, whatever else this machine is doing: seconds on the clock are printed only.
    assert max(cpu_s for _, cpu_s in starts) < RESTART_S


def test_a_run_without_any_fault_gives_the_sums_that_the_oracle_expects(tmp_path: Path) -> None:
    backbone = tiny.write_backbone(tmp_path, 64)
    trunk = tiny.trunk_of(backbone)
    learners = crowd_of(trunk, batches=100)
    with RealServer(tmp_path / "data") as server:
        server.declare(tiny.declaration(backbone))
        crowd = Crowd(learners, server.address)
        crowd.start()
        crowd.join()
    assert violations(learners, at_rest(tmp_path / "data"), expected_sums(learners, trunk)) == []


def test_control_a_server_that_says_durable_too_early_is_caught(tmp_path: Path) -> None:
    backbone = tiny.write_backbone(tmp_path, 64)
    trunk = tiny.trunk_of(backbone)
    learners = crowd_of(trunk, batches=60)
    with RealServer(tmp_path / "data", program=(FAULTY, f"early:{tmp_path / 'never'}")) as server:
        server.declare(tiny.declaration(backbone))
        crowd = Crowd(learners, server.address)
        crowd.start()
        while not any(learner.acknowledged for learner in learners):
            time.sleep(0.002)
        server.kill()
        server.program = list(PLAIN)
        server.start()
        crowd.join()
    broken = [promise for learner in learners for promise in learner.broken_promises]
    assert broken  # each learner that had been told something durable finds it gone


def test_control_a_server_that_forgets_what_is_staged_is_caught(tmp_path: Path) -> None:
    backbone = tiny.write_backbone(tmp_path, 64)
    trunk = tiny.trunk_of(backbone)
    learners = crowd_of(trunk, batches=60, cut_probability=1 / 20)
    gate = tmp_path / "gate"
    with RealServer(tmp_path / "data", program=(FAULTY, f"by_durable:{gate}")) as server:
        server.declare(tiny.declaration(backbone))
        crowd = Crowd(learners, server.address)
        crowd.start()
        while all(learner.received == learner.highest_received for learner in learners):
            assert server.process.poll() is None, server.log[-2000:]
            time.sleep(0.002)  # until one has sent again what was staged, and not durable
        gate.touch()
        crowd.join()
    found = violations(learners, at_rest(tmp_path / "data"), expected_sums(learners, trunk))
    assert {"n differs", "G differs", "digest differs"} <= set(found), found
