"""Backups while clients stream: each is of one moment. F13: a restored one is announced, nothing is lost silently."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from threading import Semaphore

import grpc
import pytest
from tests import tiny
from tests.data_folders import sql
from tests.faults.learners import Crowd, Learner
from tests.faults.parts import backups
from tests.faults.parts.backups import DIM, ask_for_backup, broken, learners_of, load, start, wait_until
from tests.real_server import RealServer

from everlearn_client import TimelineChanged
from everlearn_protos.v1 import admin_pb2, admin_pb2_grpc
from everlearn_server.store.restore import restore


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "everlearn_server.cli", *(str(each) for each in arguments)]
    return subprocess.run(line, capture_output=True, text=True, timeout=240, check=False)


def test_a_backup_under_load_is_whole_and_of_one_moment(tmp_path: Path) -> None:
    backups.run(tmp_path, **backups.SHORT)


def test_control_a_backup_whose_watermarks_are_of_another_moment_than_its_sums_is_caught(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="differs"):
        backups.run(tmp_path, backups=1, fault="another moment")


def test_f13_a_restored_backup_is_announced_to_a_client_that_goes_on_and_nothing_is_lost(tmp_path: Path) -> None:
    backbone = tiny.write_backbone(tmp_path, DIM)
    trunk = tiny.trunk_of(backbone)
    allowance = Semaphore(0)
    learners = learners_of(trunk, batches=200, allowance=allowance)
    with RealServer(tmp_path / "data") as server:
        server.declare(tiny.declaration(backbone))
        crowd = Crowd(learners, server.address)
        crowd.start()
        with load(allowance, 600) as go_on:  # so few that none of them comes to its last one
            go_on(100)
            wait_until(crowd, 60)
            ask_for_backup(server, tmp_path / "backup")
            go_on(190)
            wait_until(crowd, crowd.received + 60)
            server.kill()
        restore(tmp_path / "backup", tmp_path / "restored")
        server.folder = tmp_path / "restored"
        start(server)
        with pytest.raises(TimelineChanged):
            crowd.join()
        hear_and_decide(learners)
        again = Crowd(learners, server.address)
        again.start()
        again.join()
    assert broken(learners, tmp_path / "restored", trunk) == []


def hear_and_decide(learners: Sequence[Learner]) -> None:
    """Each heard how far it is durable now; it decides to send the rest again."""
    for learner in learners:
        error = learner.failure
        assert isinstance(error, TimelineChanged), error
        assert error.durable_sequence <= learner.acknowledged
        assert len(error.timeline) == 32
        assert f"durable up to {error.durable_sequence}" in error.message
        assert any("acknowledged batches are void" in note for note in error.__notes__)
        learner.acknowledged, learner.failure, learner.timeline = error.durable_sequence, None, error.timeline


def test_f13_a_caller_in_another_process_hears_it_by_its_timeline_and_a_mere_copy_is_found_out(tmp_path: Path) -> None:
    backbone = tiny.write_backbone(tmp_path, DIM)
    trunk = tiny.trunk_of(backbone)
    (learner,) = learners_of(trunk, count=1, batches=60)
    with RealServer(tmp_path / "data") as server:
        server.declare(tiny.declaration(backbone))
        replace(learner, batches=learner.batches[:20]).run(server.address)
        ask_for_backup(server, tmp_path / "backup")
        replace(learner, batches=learner.batches[:40], acknowledged=20).run(server.address)
        server.kill()
        # Control: a backup that is put in place without `restore` says nothing, and the client sees it all the same.
        shutil.copytree(tmp_path / "backup", tmp_path / "copied")
        server.folder = tmp_path / "copied"
        start(server)
        deceived = replace(learner, acknowledged=40, broken_promises=[])
        deceived.run(server.address)
        assert deceived.broken_promises, "40 were durable, 20 are there, and the timeline is the same"
        server.terminate()
        told = command("restore", tmp_path / "backup", "--data", tmp_path / "restored")
        assert told.returncode == 0, told.stderr
        assert "acknowledged after the backup is void" in told.stdout
        ((before,),) = sql(tmp_path / "backup", "SELECT value FROM timeline")
        server.folder = tmp_path / "restored"
        start(server)
        resend(server, learner, str(before))
    assert broken([learner], tmp_path / "restored", trunk) == []


def resend(server: RealServer, learner: Learner, before: str) -> None:
    """A caller that knows the timeline of its acknowledgements alone, and decides to send all of it once more."""
    with server.client(client_id=learner.client_id) as client:
        with pytest.raises(TimelineChanged) as heard:
            client.learn("tiny", [], timeline=before)
        assert heard.value.durable_sequence == 20
        report = client.learn(
            "tiny",
            learner.batches,
            first_sequence=1,  # what is durable is skipped, by its number
            timeline=heard.value.timeline,
            feature_digest=learner.feature_digest,
        )
    assert (report.skipped_batches, report.durable_batches) == (20, 40)


def test_the_admin_service_is_on_the_socket_alone_and_the_socket_is_the_owners(tmp_path: Path) -> None:
    with RealServer(tmp_path / "data") as server:
        assert (tmp_path / "data" / "admin.sock").stat().st_mode & 0o777 == 0o600
        with grpc.insecure_channel(server.address) as channel:
            stub = admin_pb2_grpc.AdminServiceStub(channel)
            with pytest.raises(grpc.RpcError) as refused:
                list(stub.Backup(admin_pb2.BackupRequest(to=str(tmp_path / "to")), timeout=10))
        assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED
        inside = command("backup", "--data", tmp_path / "data", "--to", tmp_path / "data" / "inside")
        assert (inside.returncode, "inside of the data folder" in inside.stderr) == (2, True)
        stopped_needed = command("migrate", "--data", tmp_path / "data", "--no-backup")
        assert (stopped_needed.returncode, "another server" in stopped_needed.stderr) == (1, True)
    assert not (tmp_path / "data" / "admin.sock").exists()
