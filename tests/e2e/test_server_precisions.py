"""Exports of one version in several precisions, through a real server: each has files, a record, a name of its own."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from tests import tiny
from tests.e2e.server_calls import Stubs, refused
from tests.e2e.test_edge_model import QUICK, device, until
from tests.real_server import RealServer
from typer.testing import CliRunner

from everlearn_client import AsyncClient, Client, InvalidArgument, Tensors
from everlearn_client.cli.app import app
from everlearn_client.edge.trust import Trust
from everlearn_client.results import ExportInfo
from everlearn_protos.v1 import export_pb2

LABELS = ("ash", "birch", "cedar")


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ONNX file, [N, 3, 16, 16] -> [N, 512]: its weights are most of an export."""
    return tiny.write_backbone(tmp_path_factory.mktemp("backbone"), 512)


@pytest.fixture(scope="module")
def exports(server: RealServer, client: Client, wide: Path) -> dict[str, ExportInfo]:
    """Of one version; half precision was asked for first."""
    server.declare(tiny.declaration(wide))
    client.learn("tiny", [(tiny.images(20, index), [label] * 20) for index, label in enumerate(LABELS)])
    number = int(client.export("tiny").version.rpartition("/")[2])
    return {precision: client.export("tiny", number, precision=precision) for precision in ("fp16", "fp32")}


def size_of(export: ExportInfo) -> int:
    return next(file.size_bytes for file in export.files if file.file_name == "model.onnx")


def test_each_precision_is_an_export_of_its_own_and_the_same_again_when_asked_again(
    client: Client, exports: dict[str, ExportInfo]
) -> None:
    assert exports["fp16"].name == f"{exports['fp32'].name}-fp16"
    assert exports["fp16"].version == exports["fp32"].version
    assert size_of(exports["fp16"]) < 0.6 * size_of(exports["fp32"])
    listed = {export.name: export for export in client.exports("tiny")}
    for precision, export in exports.items():
        assert export.precision == precision
        assert listed[export.name] == export
        assert client.export("tiny", int(export.version.rpartition("/")[2]), precision=precision) == export


def test_half_precision_answers_as_the_server_does_and_says_how_close_it_is(
    client: Client, exports: dict[str, ExportInfo], tmp_path: Path
) -> None:
    paths = {path.name: path for path in client.download(exports["fp16"], tmp_path)}
    session = onnxruntime.InferenceSession(paths["model.onnx"], providers=["CPUExecutionProvider"])
    images = np.concatenate([tiny.images(5, index, seed=3) for index in range(3)])
    scores, labels = session.run(["scores", "label"], {"image": images})
    served = client.predict("tiny", images, scores=True)
    assert served.scores_NC is not None
    np.testing.assert_allclose(scores, served.scores_NC, atol=0.02)
    assert [str(label) for label in labels] == [top[0].label for top in served.top]
    told = json.loads(paths["export.json"].read_text())
    assert told["precision"] == "fp16"
    assert told["parity_max_abs_diff"] == exports["fp16"].parity_max_abs_diff > 0
    assert 0 < told["parity"]["max_rel_diff"] <= told["parity"]["tolerance"] == 0.02
    assert "## Precision: fp16" in paths["MODEL_CARD.md"].read_text()


def test_what_the_server_signs_names_the_precision(
    client: Client, exports: dict[str, ExportInfo], tmp_path: Path
) -> None:
    for precision, export in exports.items():
        Trust(tmp_path).check(export, client)
        assert json.loads(export.manifest)["precision"] == precision


def test_no_difference_is_offered_between_two_precisions(stubs: Stubs, exports: dict[str, ExportInfo]) -> None:
    have = next(file.sha256 for file in exports["fp32"].files if file.file_name == "model.onnx")
    request = export_pb2.PlanUpdateRequest(name=exports["fp16"].name, file_name="model.onnx", have_sha256=have)
    assert not stubs.exports.PlanUpdate(request).steps


def test_what_is_no_precision_is_refused_with_its_field(
    client: Client, stubs: Stubs, exports: dict[str, ExportInfo]
) -> None:
    with pytest.raises(InvalidArgument, match="fp16") as error:
        client.export("tiny", precision="fp8")
    assert error.value.field == "precision"
    for name in (f"{exports['fp32'].name}-fp32", f"{exports['fp32'].name}-", f"{exports['fp32'].name}-x"):
        request = export_pb2.GetExportRequest(name=name)
        refused(lambda request=request: stubs.exports.GetExport(request), "INVALID_ARGUMENT", field="name")


def test_a_model_without_weights_is_refused_half_precision(server: RealServer, client: Client) -> None:
    spec = {"source": "identity"}, {"modality": "tensor", "shape": [4], "range": [0, 1]}
    told = {"apiVersion": "everlearn/v1", "kind": "Model", "metadata": {"name": "table"}}
    server.declare(json.dumps({**told, "spec": {"backbone": spec[0], "input": spec[1]}}))
    client.learn("table", [(Tensors(np.eye(4, dtype=np.float32)), ["a", "b", "a", "b"])])
    with pytest.raises(InvalidArgument, match="half precision"):
        client.export("table", precision="fp16")


def test_a_damaged_record_is_made_anew(server: RealServer, client: Client, wide: Path) -> None:
    server.declare(tiny.declaration(wide, name="damaged"))
    client.learn("damaged", [(tiny.images(20, index), [label] * 20) for index, label in enumerate(LABELS)])
    first = client.export("damaged", precision="fp16")
    digest = next(file.sha256 for file in first.files if file.file_name == "export.json")
    (path,) = [found for found in server.folder.rglob(f"*{digest}") if found.is_file()]
    path.write_bytes(b"{}")
    assert not list(client.exports("damaged"))
    again = client.export("damaged", int(first.version.rpartition("/")[2]), precision="fp16")
    assert size_of(again) == size_of(first)
    assert [export.precision for export in client.exports("damaged")] == ["fp16"]


def test_exports_of_all_precisions_go_with_their_version(server: RealServer, client: Client, wide: Path) -> None:
    server.declare(tiny.declaration(wide, name="pruned", retention={"exports": 1}))
    for seed in range(2):
        client.learn("pruned", [(tiny.images(9, index, seed=seed), [label] * 9) for index, label in enumerate(LABELS)])
        for precision in ("fp32", "fp16"):
            newest = client.export("pruned", "latest", precision=precision)
    assert {(export.version, export.precision) for export in client.exports("pruned")} == {
        (newest.version, "fp32"),
        (newest.version, "fp16"),
    }


def test_the_asynchronous_client_and_the_command_ask_for_it_too(
    server: RealServer, exports: dict[str, ExportInfo], tmp_path: Path
) -> None:
    number = exports["fp16"].version.rpartition("/")[2]

    async def asked() -> ExportInfo:
        async with AsyncClient(server.address, client_id="tester") as client:
            return await client.export("tiny", int(number), precision="fp16")

    assert asyncio.run(asked()) == exports["fp16"]
    command = ["export", "tiny", "--version", number, "-d", str(tmp_path), "--precision", "fp16", "-o", "json"]
    result = CliRunner().invoke(app, [*command, "--server", server.address])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["precision"] == "fp16"
    assert (tmp_path / "model.onnx").stat().st_size == size_of(exports["fp16"])


def test_a_device_runs_the_precision_that_it_was_set_to_and_changes_it(
    server: RealServer, client: Client, exports: dict[str, ExportInfo], tmp_path: Path
) -> None:
    (image,) = tiny.images(1, 1, seed=5)
    folder, kept = tmp_path / "device", "model/*/model.onnx"
    for precision in ("fp16", "fp32"):
        with device("tiny", folder, client, replace(QUICK, precision=precision)) as model:
            until(lambda precision=precision, model=model: model.precision == precision)
            assert model.predict(image).top[0][0].label == client.predict("tiny", image).top[0][0].label
        assert size_of(exports[precision]) in [path.stat().st_size for path in folder.glob(kept)]
