"""Exports in 8 bits through a real server: prepared beside the stream, shipped on evidence, refused without."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from tests import tiny
from tests.e2e.server_calls import Stubs
from tests.real_server import RealServer

from everlearn_client import Client, FailedPrecondition, Features, InvalidArgument
from everlearn_client.edge.session import EdgeSession
from everlearn_client.results import ExportInfo
from everlearn_protos.v1 import export_pb2

LABELS = ("ash", "birch", "cedar")
DECLARED = {"min_tested": 30, "max_drop": 0.1}
WAIT_S = 240.0


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ONNX file, [N, 3, 16, 16] -> [N, 512]: its weights are most of an export."""
    return tiny.write_backbone(tmp_path_factory.mktemp("backbone"), 512)


def teach(client: Client, name: str, seed: int, count: int = 12) -> None:
    batches = [(tiny.images(count, index, seed=seed), [label] * count) for index, label in enumerate(LABELS)]
    client.learn(name, batches)


def taught_until_it_ships(client: Client, name: str) -> ExportInfo:
    """Streams on, as long as evidence is missing: a loaded machine looks at fewer batches."""
    give_up_s, seed = time.monotonic() + WAIT_S, 0
    while True:
        teach(client, name, seed)
        seed += 1
        try:
            return client.export(name, precision="int8")
        except FailedPrecondition as error:
            if "needed" not in error.message or time.monotonic() > give_up_s:
                raise


def size_of(export: ExportInfo) -> int:
    return next(file.size_bytes for file in export.files if file.file_name == "model.onnx")


def test_without_a_declaration_there_is_none(server: RealServer, client: Client, backbone: Path) -> None:
    server.declare(tiny.declaration(backbone, name="plain"))
    teach(client, "plain", 0)
    with pytest.raises(FailedPrecondition, match="declare int8_export") as refused:
        client.export("plain", precision="int8")
    assert refused.value.reason == "NO_INT8"


def test_without_evidence_it_is_refused_and_says_what_is_missing(
    server: RealServer, client: Client, backbone: Path
) -> None:
    server.declare(tiny.declaration(backbone, name="blind", int8_export=DECLARED))
    digest = client.models.get("blind").status.input.feature_digest
    # Features that a device computed show nothing of the activations before them.
    for index, label in enumerate(LABELS):
        batch = Features(tiny.features(40, index, 16))
        client.learn("blind", [(batch, [label] * 40)], feature_digest=digest)
    with pytest.raises(FailedPrecondition, match="learned from 0 images; 64 are needed"):
        client.export("blind", precision="int8")


def test_it_ships_on_evidence_outlives_a_restart_and_answers_as_the_server_does(
    server: RealServer, client: Client, wide: Path, tmp_path: Path
) -> None:
    server.declare(tiny.declaration(wide, name="small", int8_export=DECLARED))
    export = taught_until_it_ships(client, "small")
    number = int(export.version.rpartition("/")[2])
    assert export.name.endswith("-int8")
    assert size_of(export) < 0.45 * size_of(client.export("small", number))
    paths = {path.name: path for path in client.download(export, tmp_path)}
    told = json.loads(paths["export.json"].read_text())
    evidence = told["accuracy"]
    assert evidence["tested"] >= 30
    assert evidence["observed"] >= 64
    assert evidence["fp32_accuracy"] - evidence["accuracy"] <= 0.1
    assert told["parity"]["max_rel_diff"] > 0
    assert "## Precision: int8" in paths["MODEL_CARD.md"].read_text()
    session = onnxruntime.InferenceSession(paths["model.onnx"], providers=["CPUExecutionProvider"])
    images = np.concatenate([tiny.images(20, index, seed=77) for index in range(3)])
    labels = session.run(["label"], {"image": images})[0]
    served = client.predict("small", images, version=number)
    assert np.mean([str(ours) == top[0].label for ours, top in zip(labels, served.top, strict=True)]) >= 0.9
    EdgeSession(paths["model.onnx"]).self_test(paths["probes.npz"])

    server.restart()
    with server.client(client_id="again") as again:
        plain = replace(export, pointer=b"", pointer_signature=b"")  # it was asked for by an alias
        assert again.export("small", number, precision="int8") == plain
        taught_until_it_ships(again, "small")  # what was learned is there: the first export is one


def observed(client: Client, export: ExportInfo, folder: Path) -> int:
    """Images that the ranges of its graph are from: another number is another graph."""
    client.download(export, folder)
    return int(json.loads((folder / "export.json").read_text())["accuracy"]["observed"])


def test_a_new_head_on_the_same_graph_is_a_small_difference(server: RealServer, stubs: Stubs, tmp_path: Path) -> None:
    with server.client(client_id="later") as client:
        for turn in range(20):  # now and then another graph takes over, the more seldom the more was seen
            first = client.export("small", "latest", precision="int8")
            teach(client, "small", 99 + turn, count=1)
            second = client.export("small", "latest", precision="int8")
            assert first.version != second.version
            seen = {observed(client, export, tmp_path / export.name) for export in (first, second)}
            if len(seen) == 1:
                break
        have = next(file.sha256 for file in first.files if file.file_name == "model.onnx")
        request = export_pb2.PlanUpdateRequest(name=second.name, file_name="model.onnx", have_sha256=have)
        (step,) = stubs.exports.PlanUpdate(request).steps
        assert step.size_bytes < 4 * 4 * 512


def test_what_it_costs_is_not_taken_out_by_an_erasure_and_forgotten_with_the_declaration(
    server: RealServer, wide: Path
) -> None:
    with server.client(client_id="tester") as client:
        with pytest.raises(FailedPrecondition, match="remove int8_export"):
            client.erase("small", client_id="tester")
        server.declare(tiny.declaration(wide, name="small"))
        with pytest.raises(FailedPrecondition, match="declare int8_export"):
            client.export("small", "latest", precision="int8")
        server.declare(tiny.declaration(wide, name="small", int8_export=DECLARED))
        with pytest.raises(FailedPrecondition, match="from 0 images"):
            client.export("small", "latest", precision="int8")


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"privacy": {"tier": "aggregate"}}, "tier: no_raw"),
        ({"privacy": {"client_sums": True}}, "client_sums"),
        ({"task": "multilabel"}, "classification of images"),
    ],
)
def test_where_it_would_break_a_promise_it_is_refused(
    server: RealServer, backbone: Path, spec: dict[str, object], words: str
) -> None:
    with server.client() as client, pytest.raises(InvalidArgument, match=words):
        client.models.apply(tiny.declaration(backbone, name="refused", int8_export={}, **spec))
