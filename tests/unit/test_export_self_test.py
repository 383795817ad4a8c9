"""The probes beside an export: tiny, the same each time, no pickle, passed by the file that they belong to alone."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tests import tiny

from everlearn.export.compose import Composer
from everlearn.export.probes import Probes
from everlearn.export.self_test import SelfTest
from everlearn.runtime.session import TrunkSession
from everlearn.values import LinearHead, Trunk
from everlearn_client import DataLoss
from everlearn_client.edge.session import EdgeSession


@pytest.fixture(scope="module")
def trunk(tmp_path_factory: pytest.TempPathFactory) -> Trunk:
    return tiny.trunk_of(tiny.write_backbone(tmp_path_factory.mktemp("backbone")))


def head_of(seed: int, classes: int = 5) -> LinearHead:
    rng = np.random.default_rng(seed)
    return LinearHead(
        labels=tuple(f"class-{index}" for index in range(classes)),
        weight_dC=rng.normal(size=(16, classes)).astype(np.float32),
        bias_C=rng.normal(size=classes).astype(np.float32),
        normalise=False,
        regularization=1.0,
    )


def probes_of(trunk: Trunk, head: LinearHead) -> bytes:
    run = TrunkSession(trunk.onnx).run
    return SelfTest.of(trunk, run, Probes.of(trunk, run)).file(head.scores, 1e-3)


def session_of(trunk: Trunk, head: LinearHead, folder: Path) -> EdgeSession:
    (folder / "model.onnx").write_bytes(Composer(trunk).compose(head, {"model": "tiny", "version": "3"}))
    return EdgeSession(folder / "model.onnx")


def test_the_probes_are_small_and_the_same_each_time_and_without_pickle(trunk: Trunk) -> None:
    data = probes_of(trunk, head_of(0))
    assert len(data) < 4096
    assert data == probes_of(trunk, head_of(0))
    with np.load(io.BytesIO(data), allow_pickle=False) as archive:
        assert archive["expected"].shape == (2, 5)


def test_a_file_passes_its_own_probes_and_no_others(trunk: Trunk, tmp_path: Path) -> None:
    session = session_of(trunk, head_of(0), tmp_path)
    assert (session.model, session.version) == ("tiny", 3)
    probes = tmp_path / "probes.npz"
    probes.write_bytes(probes_of(trunk, head_of(0)))
    assert session.self_test(probes) < 1e-4
    for other in (head_of(1), head_of(0, classes=4)):
        probes.write_bytes(probes_of(trunk, other))
        with pytest.raises(DataLoss):
            session.self_test(probes)
    probes.write_bytes(b"no archive")
    with pytest.raises(DataLoss, match="cannot be read"):
        session.self_test(probes)


def test_what_is_no_export_is_no_session(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(tiny.backbone_onnx())
    with pytest.raises(DataLoss, match="no export of everlearn"):
        EdgeSession(tmp_path / "model.onnx")
    (tmp_path / "model.onnx").write_bytes(b"\x00" * 100)
    with pytest.raises(DataLoss, match="cannot be run"):
        EdgeSession(tmp_path / "model.onnx")


def test_the_edge_runtime_needs_neither_the_zoo_nor_torch() -> None:
    heavy = ("everlearn", "everlearn_server", "torch", "onnx", "PIL", "scipy", "pydantic", "yaml", "typer")
    code = f"import sys, everlearn_client.edge; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
