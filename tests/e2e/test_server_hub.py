"""Backbones from a (local) Hugging Face hub through the real server: pinned, fetched, failed, begun again, offline."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.longrunning import operations_proto_pb2
from tests import tiny
from tests.e2e.server_calls import Stubs, refused
from tests.local_hub import Fault, LocalHub
from tests.real_server import RealServer

from everlearn_client import Client, EverlearnClientError, FailedPrecondition, NotFound
from everlearn_protos.v1 import models_pb2 as pb

STATE = pb.ModelStatus.State.Name


@pytest.fixture(scope="module")
def hub() -> Iterator[LocalHub]:
    with LocalHub() as running:
        yield running


@pytest.fixture(scope="module")
def server(hub: LocalHub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    """Finds its hub where HF_ENDPOINT says, as every tool of that hub does."""
    folder = tmp_path_factory.mktemp("hub-server") / "data"
    with RealServer(folder, environment={"HF_ENDPOINT": hub.url}) as running:
        yield running


@pytest.fixture(autouse=True)
def no_fault(hub: LocalHub) -> Iterator[None]:
    yield
    hub.fault = None


def published(hub: LocalHub, name: str, *, seed: int = 0) -> str:
    """A repository with one small backbone; returns its commit."""
    return hub.add_repo(f"tester/{name}", {"model.onnx": tiny.backbone_onnx(seed=seed), "README.md": b"# tiny"})


def declaration(name: str, revision: str | None) -> str:
    """Of a model on that repository, pinned or not."""
    backbone = {"source": f"hf://tester/{name}", "format": "onnx", "loader": "onnx"}
    pinned = {**backbone, "revision": revision} if revision else backbone
    size: dict[str, Any] = {"size": 16, "resize": "squash", "mean": tiny.HALF, "std": tiny.HALF}
    return json.dumps({"metadata": {"name": name}, "spec": {"backbone": pinned, "input": size}})


def described_but_not_there(hub: LocalHub, server: RealServer, client: Client, name: str) -> str:
    """A declaration whose backbone the server knows but has lost: applying it has to download."""
    text = declaration(name, published(hub, name, seed=sum(name.encode())))
    assert client.models.plan(text).action == "create"
    shutil.rmtree(server.folder / "hub")
    return text


def test_a_moving_reference_is_refused_and_lock_resolves_it(hub: LocalHub, stubs: Stubs, client: Client) -> None:
    commit = published(hub, "locked")
    hub.move_branch("tester/locked", "v1", commit)
    for revision in (None, "main", "v1", commit[:12]):
        text = declaration("locked", revision)
        for call in (stubs.models.ApplyModel, stubs.models.PlanModel):
            request = pb.ApplyModelRequest if call is stubs.models.ApplyModel else pb.PlanModelRequest
            refused(
                lambda call=call, request=request, text=text: call(request(declaration=text)),
                "INVALID_ARGUMENT",
                field="spec.backbone.revision",
            )
    pinned = client.models.lock(declaration("locked", "main"))
    assert commit in pinned.declaration
    assert pinned.lock["revision"] == commit
    published(hub, "locked", seed=9)
    model = client.models.apply(pinned.declaration).model
    assert model is not None
    assert STATE(model.status.state) == "READY"
    assert model.status.lock["revision"] == commit, "the branch has moved on, the model has not"


def test_a_plan_tells_what_would_be_downloaded(hub: LocalHub, server: RealServer, client: Client) -> None:
    text = described_but_not_there(hub, server, client, "weighed")
    (download,) = client.models.plan(text).downloads
    assert download.source == "hf://tester/weighed model.onnx"
    assert (download.size_bytes, download.cached) == (len(tiny.backbone_onnx()), False)
    client.models.apply(text)
    again = client.models.plan(text.replace('"weighed"', '"weighed-too"', 1))
    assert [each.cached for each in again.downloads] == [True]
    assert again.cost["download_bytes"] == 0


def test_a_failed_download_says_why_and_a_later_apply_succeeds(
    hub: LocalHub, server: RealServer, client: Client, stubs: Stubs
) -> None:
    text = described_but_not_there(hub, server, client, "flipped")
    hub.fault = Fault(flip_byte_at=1000, only="model.onnx")
    operation = client.models.apply(text, wait=False).operation
    assert operation is not None
    failed = stubs.wait(operation)
    assert failed.HasField("error")
    assert "not the ones that the commit pins" in failed.error.message
    with pytest.raises(EverlearnClientError):
        client.wait(operation)

    for restarted in (False, True):
        if restarted:
            server.restart()
        model = client.models.get("flipped")
        (condition,) = model.status.conditions
        assert STATE(model.status.state) == "FAILED"
        assert (condition.type, condition.status) == ("BackboneReady", False)
        assert condition.reason == "DIGEST_MISMATCH"
        assert condition.message
        assert failed.error.message.endswith(condition.message)
        refused(lambda: stubs.learn("flipped", "a"), "FAILED_PRECONDITION", reason="MODEL_NOT_READY")
        with pytest.raises(FailedPrecondition):
            client.predict("flipped", tiny.images(1, 0))

    hub.fault = None
    ready = client.models.apply(text).model
    assert ready is not None
    assert STATE(ready.status.state) == "READY"
    assert ready.status.conditions[0].status
    assert client.learn("flipped", [(tiny.images(2, 0), ["a"] * 2)]).durable_samples == 2


def test_a_model_may_be_deleted_while_its_backbone_downloads_and_declared_again(
    hub: LocalHub, server: RealServer, client: Client, stubs: Stubs
) -> None:
    text = described_but_not_there(hub, server, client, "stalled")
    hub.fault = Fault(stall_after=500, only="model.onnx")
    operation = client.models.apply(text, wait=False).operation
    assert operation is not None
    assert STATE(client.models.get("stalled").status.state) == "PREPARING"
    with pytest.raises(EverlearnClientError) as busy:
        client.models.apply(text)
    assert busy.value.code == "ABORTED"

    waited: list[Any] = []
    request = operations_proto_pb2.WaitOperationRequest(name=operation.name)
    waiter = threading.Thread(target=lambda: waited.append(stubs.operations.WaitOperation(request, timeout=120)))
    waiter.start()
    time.sleep(0.1)
    client.models.delete("stalled")
    waiter.join()
    assert "deleted" in waited[0].error.message
    with pytest.raises(NotFound):
        client.models.get("stalled")
    hub.fault = None
    anew = client.models.apply(text).model
    assert anew is not None
    assert STATE(anew.status.state) == "READY"


def test_an_operation_that_a_crash_interrupted_is_begun_again(
    hub: LocalHub, server: RealServer, client: Client, stubs: Stubs
) -> None:
    text = described_but_not_there(hub, server, client, "crashed")
    hub.fault = Fault(stall_after=500, only="model.onnx")
    operation = client.models.apply(text, wait=False).operation
    assert operation is not None
    server.kill()
    hub.fault = None
    server.start()
    done = stubs.wait(operation)
    model = pb.Model()
    assert done.response.Unpack(model)
    assert STATE(model.status.state) == "READY"
    assert client.learn("crashed", [(tiny.images(2, 0), ["a"] * 2)]).durable_samples == 2


def test_a_hub_that_does_not_know_the_repository_or_file_is_told_apart(hub: LocalHub, stubs: Stubs) -> None:
    request = pb.ApplyModelRequest(declaration=declaration("absent", "0" * 40))
    assert refused(lambda: stubs.models.ApplyModel(request), "NOT_FOUND").reason == "SOURCE_NOT_FOUND"
    commit = hub.add_repo("tester/pickled", {"model.pth": b"pickle", "README.md": b""})
    pickled = pb.ApplyModelRequest(declaration=declaration("pickled", commit))
    refused(lambda: stubs.models.ApplyModel(pickled), "INVALID_ARGUMENT", reason="FORBIDDEN_FILE", says="pickles")
    gated = hub.add_repo("tester/gated", {"model.onnx": tiny.backbone_onnx()}, gated=True, tokens=("t",))
    closed = pb.ApplyModelRequest(declaration=declaration("gated", gated))
    assert refused(lambda: stubs.models.ApplyModel(closed), "FAILED_PRECONDITION").reason == "ACCESS_DENIED"


def test_what_was_fetched_and_learned_serves_on_without_a_hub(tmp_path: Path) -> None:
    with LocalHub() as hub:
        text = declaration("lasting", published(hub, "lasting"))
        server = RealServer(tmp_path / "data", environment={"HF_ENDPOINT": hub.url})
        server.start()
        server.declare(text)
        with server.client() as client:
            for label in range(3):
                client.learn("lasting", [(tiny.images(6, label), [f"c{label}"] * 6)])
            before = client.predict("lasting", tiny.images(3, 1, seed=3), scores=True)
        server.terminate()
        hub.stop()
    server.environment["HF_HUB_OFFLINE"] = "1"
    with server, server.client() as client:
        after = client.predict("lasting", tiny.images(3, 1, seed=3), scores=True)
        assert after.version == before.version
        np.testing.assert_array_equal(after.scores_NC, before.scores_NC)
        assert client.models.apply(text, wait=False).plan.action == "none"
        assert client.learn("lasting", [(tiny.images(2, 0), ["c0"] * 2)]).durable_samples == 2
        assert client.export("lasting").files
        client.models.delete("lasting")
        rebuilt = client.models.apply(text).model
        assert rebuilt is not None
        assert STATE(rebuilt.status.state) == "READY", "cached files are enough to declare it again"
