"""Hostile model files by the way a declaration takes them: the hub hands over, the loader looks, nothing runs."""

from __future__ import annotations

import hashlib
from pathlib import Path

import onnx
import psutil
import pytest
from tests import tiny
from tests.e2e.server_calls import Stubs, apply_request, refused
from tests.faults import hostile_models
from tests.real_server import RealServer

from everlearn.backbones._onnx_bounds import check_bounded
from everlearn.backbones.onnx import OnnxLoader
from everlearn.errors import BackboneError, ForbiddenFileError
from everlearn.hubs import hub_for
from everlearn.hubs.base import HubSettings
from everlearn.runtime import session as sessions
from everlearn.spec.model import Backbone


def declared(path: Path, kind: str, loader: str) -> Backbone:
    return Backbone(
        source=f"folder:{path}",
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        format=kind,  # type: ignore[arg-type]  # one of the formats
        loader=loader,
    )


def built(path: Path, cache: Path) -> None:
    """What a server does in its child."""
    backbone = declared(path, "onnx", "onnx")
    files = hub_for(backbone, HubSettings(cache=cache)).fetch(backbone, lambda done, total: None)
    OnnxLoader().build(backbone, files, tiny.FRONT, bits=12)


def handed_over(path: Path, cache: Path) -> None:
    """What a server does before anything else."""
    backbone = declared(path, "safetensors", "timm")
    hub_for(backbone, HubSettings(cache=cache)).fetch(backbone, lambda done, total: None)


@pytest.fixture
def never_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: object, **__: object) -> None:
        raise AssertionError("ONNX Runtime saw the file")

    monkeypatch.setattr(sessions.ort, "InferenceSession", run)


@pytest.mark.usefixtures("never_run")
def test_no_form_of_external_data_is_followed(tmp_path: Path) -> None:
    files = hostile_models.external_files(tmp_path)
    assert len(files) == 6
    for name, path in files.items():
        with pytest.raises(BackboneError, match="lies in another file") as refusal:
            built(path, tmp_path / "cache")
        assert "secret" not in refusal.value.message, name


def test_without_the_check_the_runtime_would_follow_some(tmp_path: Path) -> None:
    """The control: a file beside is read by onnx itself, a hard link by the runtime."""
    files = hostile_models.external_files(tmp_path)
    read = onnx.load_model(files["relative"]).graph.initializer[0].raw_data
    assert read == hostile_models.SECRET[: len(read)]
    assert sessions.ort.InferenceSession(files["hard link"]).get_inputs()[0].name == "image"


@pytest.mark.usefixtures("never_run")
@pytest.mark.parametrize(("spoil", "says"), hostile_models.SPOILT, ids=lambda part: getattr(part, "__name__", ""))
def test_a_hostile_graph_is_refused_before_anything_runs(tmp_path: Path, spoil: object, says: str) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(spoil(hostile_models.base()).SerializeToString())  # type: ignore[operator]  # a function
    with pytest.raises(BackboneError, match=says) as refusal:
        built(path, tmp_path / "cache")
    assert len(refusal.value.message) < 500


@pytest.mark.parametrize("spoil", [hostile_models.by_the_pixels, hostile_models.by_what_is_found])
def test_a_graph_whose_size_the_pixels_decide_is_sound_by_itself(spoil: object) -> None:
    """The control: onnx and its runtime find nothing wrong with it."""
    model = spoil(hostile_models.base())  # type: ignore[operator]  # a function
    onnx.checker.check_model(model)
    assert sessions.ort.InferenceSession(model.SerializeToString())


def test_sizes_that_come_of_shapes_are_taken() -> None:
    """As exporters write them: a reshape by the batch, zeros of a mask's shape."""
    model = hostile_models.base()
    helper = onnx.helper
    nodes = [
        helper.make_node("Shape", ["pooled"], ["sizes"]),
        helper.make_node("ConstantOfShape", ["sizes"], ["zeros"]),
        helper.make_node("Reshape", ["pooled", "sizes"], ["again"]),
    ]
    model.graph.node.extend(nodes)
    check_bounded(model.graph, "image")


@pytest.mark.parametrize("kind", ["onnx", "safetensors"])
def test_an_archive_under_a_good_name_is_refused(tmp_path: Path, kind: str) -> None:
    for name, data in hostile_models.archives().items():
        path = tmp_path / f"{name}.{kind}"
        path.write_bytes(data)
        take = built if kind == "onnx" else handed_over
        with pytest.raises((BackboneError, ForbiddenFileError), match=r"not an ONNX file|not a valid|well-formed"):
            take(path, tmp_path / "cache")
        assert sorted(each.name for each in tmp_path.parent.glob("evil*")) == []


@pytest.mark.slow
def test_the_server_outlives_what_it_is_told_to_take_up(tmp_path: Path) -> None:
    """Through the whole path: plan, child, and the operation that says what became of it."""
    files = hostile_models.external_files(tmp_path / "external")
    taken = {"hard link": files["hard link"]}
    for spoil in (hostile_models.without_end_of_memory, hostile_models.for_ever):
        taken[spoil.__name__] = tmp_path / f"{spoil.__name__}.onnx"
        taken[spoil.__name__].write_bytes(spoil(hostile_models.base()).SerializeToString())
    with RealServer(tmp_path / "data") as server, Stubs(server.address) as stubs:
        process = psutil.Process(server.pid)
        before = process.memory_info().rss
        for name, path in taken.items():
            declaration = tiny.declaration(path, name=name.replace(" ", "-").replace("_", "-"))
            if name == "hard link":
                refused(
                    lambda text=declaration: stubs.models.ApplyModel(apply_request(text)),
                    "INVALID_ARGUMENT",
                    says="lies in another file",
                )
                continue
            operation = stubs.models.ApplyModel(apply_request(declaration)).operation
            done = stubs.wait(operation)
            assert done.WhichOneof("result") == "error", name
            assert "trunk" in done.error.message or "Loop" in done.error.message, done.error.message
        for name, data in list(hostile_models.archives().items())[:3]:
            path = tmp_path / f"{name}.onnx"
            path.write_bytes(data)
            request = apply_request(tiny.declaration(path, name=f"a-{name}"))
            refused(
                lambda request=request: stubs.models.ApplyModel(request), "INVALID_ARGUMENT", says="not an ONNX file"
            )
        assert process.memory_info().rss - before < 50 * 2**20
        assert "Traceback" not in server.log
        honest = server.declare(tiny.declaration(tiny.write_backbone(tmp_path), name="honest"))
        assert honest.name == "models/honest"
