"""Old answers of a server, all of them truly signed: whoever offers them again moves no device back."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests import tiny
from tests.e2e.replaying import Replaying
from tests.e2e.test_edge_model import declare, device, teach
from tests.real_server import RealServer
from typer.testing import CliRunner

from everlearn_client import Client, DataLoss
from everlearn_client.edge import EdgeModel
from everlearn_client.edge.trust import Trust
from everlearn_server.command import app


@pytest.fixture
def between(server: RealServer) -> Iterator[Replaying]:
    with Replaying(server.address) as made:
        yield made


@pytest.fixture
def teacher(server: RealServer) -> Iterator[Client]:
    with server.client(client_id="teacher") as made:
        yield made


def confirmed(edge: EdgeModel) -> str:
    """The version that runs, which makes room for the next once it has answered."""
    edge.predict(tiny.images(1, 0))
    edge.pull()
    return edge.version


def moved_on(edge: EdgeModel, teacher: Client, name: str, seed: int) -> str:
    before = confirmed(edge)
    teach(teacher, name, seed=seed)
    edge.pull()
    assert edge.version != before
    return edge.version


def replayed(
    name: str, between: Replaying, server: RealServer, teacher: Client, backbone: Path, folder: Path
) -> tuple[str, str]:
    """The version before, which is offered again, and the one that runs after that."""
    declare(server, backbone, name)
    with Client(between.address, client_id=name) as client:
        edge = device(name, folder, client)
        edge.pull()
        before = edge.version
        between.replays = True
        with server.client(client_id=name) as direct:
            edge._client = direct
            moved_on(edge, teacher, name, seed=1)
            assert edge.version != before
            edge.predict(tiny.images(1, 0))
        edge._client = client
        try:
            edge.pull()
            assert between.replayed
            return before, edge.version
        finally:
            edge.close()


def test_an_old_answer_is_refused_and_says_so(
    server: RealServer, between: Replaying, teacher: Client, backbone: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataLoss, match=r"was stable once .* an old answer is offered"):
        replayed("replayed", between, server, teacher, backbone, tmp_path)
    assert between.replayed


def test_control_a_device_that_does_not_count_moves_goes_back(
    server: RealServer,
    between: Replaying,
    teacher: Client,
    backbone: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Trust, "_check_move", lambda *_: None)
    before, after = replayed("control", between, server, teacher, backbone, tmp_path)
    assert after == before


def test_a_rollback_of_the_server_is_followed_and_its_undoing_too(
    server: RealServer, client: Client, teacher: Client, backbone: Path, tmp_path: Path
) -> None:
    declare(server, backbone, "rolled")
    edge = device("rolled", tmp_path, client)
    edge.pull()
    first = confirmed(edge)
    second = moved_on(edge, teacher, "rolled", seed=1)
    confirmed(edge)
    client.models.rollback("rolled", version=int(first.rpartition("/")[2]))
    assert edge.pull()
    assert confirmed(edge) == first
    client.models.promote("rolled", version=int(second.rpartition("/")[2]))
    assert edge.pull()
    assert edge.version == second
    edge.close()


def test_what_the_device_gave_up_itself_stays_given_up_and_the_next_one_is_taken(
    server: RealServer, client: Client, teacher: Client, backbone: Path, tmp_path: Path
) -> None:
    declare(server, backbone, "fallen")
    edge = device("fallen", tmp_path, client)
    edge.pull()
    first = confirmed(edge)
    second = moved_on(edge, teacher, "fallen", seed=1)
    edge.close()
    for _ in range(4):  # the program dies each time, before the version is confirmed
        again = device("fallen", tmp_path, client)
        running = again.version
        again._spool.close()
    assert running == first
    last = device("fallen", tmp_path, client)
    assert not last.pull()
    assert last.version == first != second
    moved_on(last, teacher, "fallen", seed=2)
    last.close()


def test_a_backup_that_was_restored_is_followed_one_that_was_copied_back_is_not(
    server: RealServer, teacher: Client, backbone: Path, tmp_path: Path
) -> None:
    declare(server, backbone, "restored")
    runner = CliRunner()
    assert runner.invoke(app, ["backup", "--data", str(server.folder), "--to", str(tmp_path / "b")]).exit_code == 0
    with server.client(client_id="d") as client:
        edge = device("restored", tmp_path / "device", client)
        edge.pull()
        newest = moved_on(edge, teacher, "restored", seed=1)
        confirmed(edge)
        edge.close()
    for way, follows in (("copied", False), ("restored", True)):
        folder = tmp_path / way
        if follows:
            done = runner.invoke(app, ["restore", str(tmp_path / "b"), "--data", str(folder)])
            assert done.exit_code == 0, done.output
        else:
            shutil.copytree(tmp_path / "b", folder, ignore=shutil.ignore_patterns("manifest.json"))
        with RealServer(folder) as other, other.client(client_id="d") as client:
            edge = device("restored", tmp_path / "device", client)
            assert edge.version == newest
            if follows:
                assert edge.pull()
                assert edge.version != newest
            else:
                with pytest.raises(DataLoss, match="copied back without `restore`"):
                    edge.pull()
                assert edge.version == newest
            edge.close()
