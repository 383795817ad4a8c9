"""Nothing durable is lost around an `apply`: repeated after a crash, or of a model that could not be taken up."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from tests import tiny
from tests.real_server import RealServer

from everlearn_client import Client, FailedPrecondition
from everlearn_protos.v1 import models_pb2


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RealServer]:
    with RealServer(tmp_path / "data") as running:
        yield running


def learned(client: Client, folder: Path, **spec: object) -> str:
    """A model that knows two classes of ten samples each; returns its declaration."""
    text = tiny.declaration(tiny.write_backbone(folder), **spec)
    client.models.apply(text)
    for label in (0, 1):
        client.learn("tiny", [(tiny.images(10, label), [f"class-{label}"] * 10)], client_id="a")
    return text


def state_of(model: models_pb2.Model) -> tuple[str, int]:
    return models_pb2.ModelStatus.State.Name(model.status.state), model.status.sample_count


def test_an_apply_that_runs_again_after_a_crash_keeps_what_was_learned(server: RealServer, tmp_path: Path) -> None:
    with server.client() as client:
        learned(client, tmp_path)
        generation = client.models.get("tiny").generation
    server.terminate()
    # As a crash leaves it between the model's row and the end of its operation.
    with closing(sqlite3.connect(tmp_path / "data" / "everlearn.sqlite")) as database, database:
        assert database.execute("update operation set done = 0, result_json = null").rowcount == 1
    server.start()
    with server.client() as client:
        model = client.models.get("tiny")
        assert (state_of(model), model.generation) == (("READY", 20), generation)
        assert len(client.predict("tiny", tiny.images(2, 0)).top) == 2


def test_a_damaged_trunk_is_told_and_applying_again_mends_it_without_loss(server: RealServer, tmp_path: Path) -> None:
    with server.client() as client:
        text = learned(client, tmp_path)
        digest = client.models.get("tiny").status.trunk_digest
    server.terminate()
    (blob,) = [path for path in (tmp_path / "data" / "blobs").rglob("*") if path.name.endswith(digest[-20:])]
    good = blob.read_bytes()
    blob.chmod(0o600)
    blob.write_bytes(bytes([good[0] ^ 1]) + good[1:])
    server.start()
    with server.client() as client:
        model = client.models.get("tiny")
        assert state_of(model)[0] == "FAILED"
        assert model.status.conditions[0].reason == "DATA_LOSS"
        client.models.apply(text)
        assert state_of(client.models.get("tiny")) == ("READY", 20)
        client.learn("tiny", [(tiny.images(5, 2), ["class-2"] * 5)], client_id="b")
    server.restart()
    with server.client() as client:
        assert state_of(client.models.get("tiny")) == ("READY", 25)


def test_a_model_that_comes_back_by_itself_says_so_and_has_one_writer(server: RealServer, tmp_path: Path) -> None:
    with server.client() as client:
        text = learned(client, tmp_path)
        digest = client.models.get("tiny").status.trunk_digest
    server.terminate()
    (blob,) = [path for path in (tmp_path / "data" / "blobs").rglob("*") if path.name.endswith(digest[-20:])]
    good = blob.read_bytes()
    blob.chmod(0o600)
    blob.write_bytes(b"spoiled")
    server.start()
    server.terminate()
    blob.write_bytes(good)
    server.start()
    with server.client() as client:
        model = client.models.get("tiny")
        assert (state_of(model), model.status.conditions[0].status) == (("READY", 20), True)
        assert client.models.apply(text).plan.action == "none"
        other = tiny.declaration(tiny.write_backbone(tmp_path, 24, seed=3))
        with pytest.raises(FailedPrecondition, match="allow_replace"):  # another backbone is no "create" here
            client.models.apply(other)
        assert state_of(client.models.get("tiny")) == ("READY", 20)


def test_a_lowered_gate_is_in_force_at_once(server: RealServer, tmp_path: Path) -> None:
    with server.client() as client:
        learned(client, tmp_path, gate={"min_samples": 1000})
        with pytest.raises(FailedPrecondition, match="20 samples of 1000"):
            client.predict("tiny", tiny.images(1, 0))
        client.models.apply(tiny.declaration(tiny.write_backbone(tmp_path), gate={"min_samples": 5}))
        wait_for_version(client, newer_than=client.models.get("tiny").status.aliases["latest"] - 1)
        assert client.predict("tiny", tiny.images(1, 0)).top[0][0].label == "class-0"


def test_appended_labels_make_a_version_that_has_them(server: RealServer, tmp_path: Path) -> None:
    with server.client() as client:
        learned(client, tmp_path)
        before = client.models.version("tiny", "latest")
        more = ["class-0", "class-1", "to-come"]
        client.models.apply(tiny.declaration(tiny.write_backbone(tmp_path), labels=more))
        wait_for_version(client, newer_than=before.number)
        assert list(client.models.version("tiny", "latest").labels) == more


def wait_for_version(client: Client, *, newer_than: int) -> None:
    for _ in range(200):
        if client.models.version("tiny", "latest").number > newer_than and "stable" in (
            client.models.get("tiny").status.aliases
        ):
            return
        client.info()
    raise AssertionError("no new version")
