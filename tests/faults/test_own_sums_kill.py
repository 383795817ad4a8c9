"""Servers that keep each client's own sums, killed inside commits and inside an erasure: rows and memory are of one
moment, and who is taken out without receipts was never there."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from tests import tiny
from tests.faults import learners as crowd
from tests.faults.test_crash_points import FAULTY, learners_of
from tests.real_server import START_S, RealServer

from everlearn.values import Trunk
from everlearn_client.errors import DataLoss, Unavailable
from everlearn_server.check.folder import check

LATE = str(Path(__file__).with_name("own_sums_late.py"))


def declared(folder: Path) -> tuple[RealServer, Trunk]:
    """A server that has the model, ended again."""
    backbone = tiny.write_backbone(folder, 48)
    with RealServer(folder / "data") as server:
        server.declare(tiny.declaration(backbone, privacy={"client_sums": True}))
    return server, tiny.trunk_of(backbone)


def erase(server: RealServer, client_id: str) -> str:
    """Takes a client out; the digest of what is left."""
    with server.client() as client:
        report = client.erase("tiny", client_id=client_id)
        assert (report.exact, report.how) == (True, "own sums subtracted")
        return client.models.get("tiny").status.memory_digest


def test_kills_inside_commits_and_an_erasure_leave_rows_and_memory_of_one_moment(tmp_path: Path) -> None:
    server, trunk = declared(tmp_path)
    plain, learners = server.program, learners_of(trunk, count=3, batches=150)
    streaming = crowd.Crowd(learners, server.address)
    streaming.start()
    for fault in ("kill:committed:1", "blobs+kill:blob_renamed:2"):
        server.program = [FAULTY, fault]
        server.launch()
        assert server.wait(timeout_s=START_S) == -signal.SIGKILL, fault
        assert check(server.folder).damaged == []
    server.program = plain
    server.start()
    streaming.join()
    server.terminate()
    before = crowd.at_rest(server.folder)
    assert crowd.violations(learners, before, crowd.expected_sums(learners, trunk)) == []
    assert check(server.folder).damaged == []
    for point in ("before_commit", "committed"):
        server.program = [FAULTY, f"kill:{point}:1"]
        server.start()
        with pytest.raises(Unavailable):
            erase(server, "learner-1")
        assert server.wait(timeout_s=START_S) == -signal.SIGKILL
        found = crowd.at_rest(server.folder)
        assert check(server.folder).damaged == []
        if point == "before_commit":
            assert found == before
    assert found.sums.digest() == crowd.expected_sums([learners[0], learners[2]], trunk).digest()
    assert (found.streams["learner-1"].sample_count, found.streams["learner-1"].durable_sequence) == (0, 150)
    server.program = plain
    with server:
        assert erase(server, "learner-0") == crowd.expected_sums([learners[2]], trunk).digest()


def test_control_rows_of_another_transaction_than_the_memory_are_caught(tmp_path: Path) -> None:
    server, trunk = declared(tmp_path)
    plain, learners = server.program, learners_of(trunk, count=2, batches=150)
    streaming = crowd.Crowd(learners, server.address)
    streaming.start()
    server.program = [LATE, "2"]
    server.launch()
    assert server.wait(timeout_s=START_S) == -signal.SIGKILL
    assert any("own sums are of" in finding.problem for finding in check(server.folder).damaged)
    server.program = plain
    with server:
        streaming.join()
        wrong = 0
        for learner in learners:
            try:
                erase(server, learner.client_id)
            except DataLoss:  # the ledger says more than its own sums
                wrong += 1
        assert wrong > 0
