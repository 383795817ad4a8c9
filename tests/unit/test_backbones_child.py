"""Building in a child process: what crosses, what comes back, and what happens when the child dies."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.unit.backbone_files import LITE0, ONNX, ONNX_FRONT, lite0_files, onnx_files, small_onnx

from everlearn.backbones.child import build_in_child, describe_in_child, dump_manifest, load_trunk
from everlearn.backbones.onnx import OnnxLoader
from everlearn.errors import BackboneError, DataLossError, IntegrityError, SpecError
from everlearn.runtime.process import run_module
from everlearn.values import FrontConfig, Trunk


@pytest.fixture
def trunk(tmp_path: Path) -> Trunk:
    return OnnxLoader().build(ONNX, onnx_files(tmp_path / "trunk", small_onnx()), ONNX_FRONT, bits=10)


def test_a_child_builds_the_same_trunk_and_leaves_nothing_behind(tmp_path: Path, trunk: Trunk) -> None:
    work = tmp_path / "work"
    built = build_in_child(ONNX, onnx_files(tmp_path, small_onnx()), ONNX_FRONT, bits=10, work_dir=work)
    assert built.feature_digest == trunk.feature_digest
    assert built.provenance == trunk.provenance
    assert list(work.iterdir()) == []


def test_a_child_describes_as_the_loader_does(tmp_path: Path) -> None:
    files = onnx_files(tmp_path, small_onnx())
    assert describe_in_child(ONNX, files) == OnnxLoader().describe(ONNX, files)


def test_the_parent_never_loads_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from tests.unit.backbone_files import *\n"
        "from everlearn.backbones.child import build_in_child\n"
        f"trunk = build_in_child(LITE0, lite0_files(), LITE0_FRONT, bits=12, work_dir=Path({str(tmp_path)!r}))\n"
        "print(trunk.feature_dim, 'torch' in sys.modules)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=280, check=False)
    assert told.stdout.split() == ["1280", "False"], told.stderr
    assert [path.name for path in tmp_path.iterdir()] == [f"{LITE0.sha256}.safetensors"]


def test_a_childs_refusal_comes_back_as_itself(tmp_path: Path) -> None:
    files = onnx_files(tmp_path, small_onnx())
    with pytest.raises(BackboneError, match="pixels only") as caught:
        build_in_child(ONNX, files, FrontConfig(height=8, width=8), bits=12, work_dir=tmp_path)
    assert caught.value.field == "spec.input.size"
    with pytest.raises(SpecError, match="known: identity, mlp, onnx, timm") as unknown:
        describe_in_child(ONNX.model_copy(update={"loader": "child"}), files)
    assert unknown.value.field == "spec.backbone.loader"
    files.paths["model.onnx"].write_bytes(b"other")
    with pytest.raises(IntegrityError):
        describe_in_child(ONNX, files)


def test_a_torch_file_without_a_pin_is_refused_unread(tmp_path: Path) -> None:
    loose = LITE0.model_copy(update={"sha256": None})
    with pytest.raises(BackboneError, match="needs the file's sha256"):
        build_in_child(loose, lite0_files(), ONNX_FRONT, bits=12, work_dir=tmp_path)


def test_a_late_child_is_stopped(tmp_path: Path) -> None:
    files = onnx_files(tmp_path, small_onnx())
    with pytest.raises(BackboneError, match=r"took more than 0.01 s"):
        build_in_child(ONNX, files, ONNX_FRONT, bits=12, work_dir=tmp_path / "work", timeout_s=0.01)


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    from everlearn.runtime import process

    monkeypatch.setitem(process._ENVIRONMENT, "PYTHONPATH", str(tmp_path))
    return tmp_path


def test_a_killed_child_is_an_error_with_its_last_words(modules: Path) -> None:
    source = "import os, sys\nprint('almost there', file=sys.stderr, flush=True)\nos.kill(os.getpid(), 9)\n"
    (modules / "dies.py").write_text(source)
    with pytest.raises(BackboneError, match="building x was killed by SIGKILL; last it said: almost there"):
        run_module("dies", timeout_s=240, task="building x")


def test_a_child_that_fails_is_an_error_with_its_last_line(modules: Path) -> None:
    (modules / "fails.py").write_text("raise MemoryError('no room')\n")
    with pytest.raises(BackboneError, match="building x failed: MemoryError: no room"):
        run_module("fails", timeout_s=240, task="building x")


def test_of_an_error_that_goes_on_with_advice_the_error_is_told(modules: Path) -> None:
    # As torch says it: lines of advice follow, and the last of them says nothing.
    advice = (
        "CUDA error: out of memory\\nSearch for it in the docs\\nCompile with `TORCH_USE_CUDA_DSA` to enable asserts"
    )
    (modules / "full.py").write_text(
        f"class AcceleratorError(RuntimeError): pass\nraise AcceleratorError('{advice}')\n"
    )
    with pytest.raises(BackboneError, match="failed: AcceleratorError: CUDA error: out of memory"):
        run_module("full", timeout_s=240, task="building x")


def test_a_child_sees_no_secret_of_the_parent(modules: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    (modules / "tells.py").write_text("import os, json\nprint(json.dumps(dict(os.environ)))\n")
    seen = json.loads(run_module("tells", timeout_s=240, task="x"))
    assert "HF_TOKEN" not in seen
    assert seen["HF_HUB_OFFLINE"] == "1"


def test_a_trunk_survives_rest(trunk: Trunk) -> None:
    again = load_trunk(trunk.onnx, dump_manifest(trunk))
    assert again.feature_digest == trunk.feature_digest
    assert again.scale.step_d.dtype == np.float32
    assert (again.front, again.parity_max_rel_diff) == (trunk.front, trunk.parity_max_rel_diff)
    assert again.provenance == trunk.provenance


def test_broken_bytes_at_rest_are_a_data_loss(trunk: Trunk) -> None:
    manifest = dump_manifest(trunk)
    told = json.loads(manifest)
    other_steps = base64.b64encode(np.full(8, 2.0, "<f4").tobytes()).decode()
    for onnx, text in [
        (trunk.onnx[:-1] + b"\0\0", manifest),
        (trunk.onnx, manifest[:-5]),
        (trunk.onnx, b"[]"),
        (trunk.onnx, json.dumps(told | {"scale": told["scale"] | {"step_d": other_steps}}).encode()),
        (trunk.onnx, json.dumps(told | {"format": 9}).encode()),
        (replace(trunk, onnx=b"x").onnx, manifest),
    ]:
        with pytest.raises(DataLossError):
            load_trunk(onnx, text)
