"""Servers that end at chosen points: inside a commit, by SIGTERM, by a bug, and the one that must not start at all."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from tests import tiny
from tests.faults.forked import ForkedServer
from tests.faults.learners import Crowd, Learner, at_rest, expected_sums, make_batches, violations
from tests.real_server import RealServer

from everlearn.values import Trunk
from everlearn_client.errors import EverlearnClientError, Unavailable
from everlearn_client.samples import Batch

FAULTY = str(Path(__file__).with_name("faulty_server.py"))
DIM = 32


@pytest.fixture
def backbone(tmp_path: Path) -> Path:
    """A tiny one."""
    return tiny.write_backbone(tmp_path, DIM)


def learners_of(trunk: Trunk, *, count: int = 2, batches: int = 400) -> list[Learner]:
    learners = []
    for index in range(count):
        made, features = make_batches(index, batches, trunk)
        learners.append(Learner(f"learner-{index}", made, features, feature_digest=trunk.feature_digest))
    return learners


def declared(folder: Path, backbone: Path) -> RealServer:
    """A server that has the model, ended again: what follows starts on its data folder."""
    with RealServer(folder / "data") as server:
        server.declare(tiny.declaration(backbone))
    return server


def test_kills_inside_a_commit_lose_nothing_and_count_nothing_twice(tmp_path: Path, backbone: Path) -> None:
    trunk = tiny.trunk_of(backbone)
    server, learners = declared(tmp_path, backbone), learners_of(trunk)
    plain, crowd = server.program, Crowd(learners, server.address)
    crowd.start()
    for point, passes in (("begun", 1), ("before_commit", 3), ("committed", 2), ("begun", 2)):
        server.program = [FAULTY, f"kill:{point}:{passes}"]
        server.launch()
        assert server.wait() == -signal.SIGKILL, point
    server.program = plain
    with server:
        crowd.join()
    assert violations(learners, at_rest(tmp_path / "data"), expected_sums(learners, trunk)) == []


def test_control_a_client_that_resends_under_new_sequences_is_caught(tmp_path: Path, backbone: Path) -> None:
    trunk = tiny.trunk_of(backbone)
    server, [learner] = declared(tmp_path, backbone), learners_of(trunk, count=1, batches=10)
    plain, server.program = server.program, [FAULTY, "kill:committed:1"]
    server.start()

    def stream(batches: list[Batch]) -> None:
        with server.client(client_id=learner.client_id) as client:
            client.learn("tiny", batches, feature_digest=trunk.feature_digest, retry_for_s=0)

    with pytest.raises(Unavailable):
        stream(learner.batches)
    assert server.wait() == -signal.SIGKILL
    server.program = plain
    with server:
        stream(learner.batches)  # no `first_sequence`: they go on with numbers of their own
    found = violations([learner], at_rest(tmp_path / "data"), expected_sums([learner], trunk))
    assert {"n differs", "S differs", "G differs", "digest differs"} <= set(found), found


def test_f16_a_second_server_on_the_same_data_folder_refuses_and_says_why(tmp_path: Path) -> None:
    with RealServer(tmp_path / "data") as first:
        second = RealServer(tmp_path / "data")
        second._log, second._ready = tmp_path / "second.log", tmp_path / "second.ready"
        second.launch()
        assert second.wait() == 1
        assert second.log.startswith("everlearn-server: ")
        assert "data" in second.log
        assert "another server" in second.log
        assert len(second.log.splitlines()) == 1
        with first.client() as client:
            client.info()


def test_control_servers_that_do_not_lock_the_folder_run_beside_each_other(tmp_path: Path) -> None:
    with ExitStack() as stack:
        for name in ("first", "second"):
            server = ForkedServer(tmp_path / "data", beside=tmp_path / name)
            (tmp_path / name).mkdir()
            server.fault = "unlocked"
            stack.callback(server.end)
            server.start()  # raises where it does not come to listen


def test_sigterm_makes_everything_received_durable_and_exits_with_0(tmp_path: Path) -> None:
    backbone = tiny.write_backbone(tmp_path, 512)  # commits take long, so that one is under way
    trunk = tiny.trunk_of(backbone)
    learners = learners_of(trunk, batches=400)
    with RealServer(tmp_path / "data") as server:
        server.declare(tiny.declaration(backbone))
        threads = [threading.Thread(target=streamed, args=(learner, server)) for learner in learners]
        for thread in threads:
            thread.start()
        while min(learner.received for learner in learners) < 40:
            time.sleep(0.002)
        assert server.terminate() == 0
        for thread in threads:
            thread.join(240)
    found = at_rest(tmp_path / "data")
    for learner in learners:
        assert learner.highest_received <= found.streams[learner.client_id].durable_sequence
        kept = found.streams[learner.client_id].durable_sequence
        learner.batches, learner.features = learner.batches[:kept], learner.features[:kept]
    assert violations(learners, found, expected_sums(learners, trunk)) == []


def streamed(learner: Learner, server: RealServer) -> None:
    """One connection, until the server ends it."""

    def slowly() -> Iterator[Batch]:
        for batch in learner.batches:
            time.sleep(0.005)
            yield batch

    with server.client(client_id=learner.client_id) as client, suppress(EverlearnClientError):
        client.learn(
            "tiny",
            slowly(),
            feature_digest=learner.feature_digest,
            on_event=lambda event: learner.hear(event),
            retry_for_s=0,
        )


def test_an_unforeseen_error_in_the_writer_ends_the_process_with_75_and_the_restart_goes_on(
    tmp_path: Path, backbone: Path
) -> None:
    trunk = tiny.trunk_of(backbone)
    server, learners = declared(tmp_path, backbone), learners_of(trunk)
    plain, server.program = server.program, [FAULTY, "raise:50"]
    server.start()
    crowd = Crowd(learners, server.address)
    crowd.start()
    assert server.wait() == 75
    assert "writer failed" in server.log
    server.program = plain
    with server:
        crowd.join()
    assert violations(learners, at_rest(tmp_path / "data"), expected_sums(learners, trunk)) == []
