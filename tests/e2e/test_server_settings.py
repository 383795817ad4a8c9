"""The server's process under settings of all kinds: what it takes, what it refuses, and what is seen of it."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import onnxruntime
import pytest
from tests import tiny
from tests.local_hub import LocalHub
from tests.real_server import RealServer

CUDA = "CUDAExecutionProvider"


def failed(folder: Path, *arguments: str, **environment: str) -> tuple[int, str]:
    """Exit status and log of a server that does not start."""
    server = RealServer(folder / "data", arguments=arguments, environment=environment)
    server.launch()
    return server.wait(), server.log


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--metrics-listen", "abc"), "address:port"),
        (("--metrics-listen", "9090"), "address:port"),
        (("--log-level", "loud"), "one of debug, info, warning, error"),
        (("--device", "tpu"), "cpu or cuda"),
    ],
)
def test_a_wrong_option_is_one_clear_line_and_nothing_is_made(
    tmp_path: Path, arguments: tuple[str, ...], says: str
) -> None:
    status, log = failed(tmp_path, *arguments)
    assert (status, len(log.splitlines())) == (2, 1), log
    assert says in log
    assert not (tmp_path / "data").exists()


def test_metrics_that_cannot_be_served_end_the_start_before_anyone_is_told(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        status, log = failed(tmp_path, "--metrics-listen", f"127.0.0.1:{taken.getsockname()[1]}")
    assert status == 1
    assert "cannot serve metrics on 127.0.0.1:" in log
    assert "Traceback" not in log
    assert "listening" not in log


@pytest.mark.skipif(CUDA in onnxruntime.get_available_providers(), reason="this ONNX Runtime can use CUDA")
def test_a_gpu_that_cannot_be_had_ends_the_start(tmp_path: Path) -> None:
    status, log = failed(tmp_path, EVERLEARN_DEVICE="cuda")
    assert status == 1
    assert log.startswith(f"everlearn-server: this ONNX Runtime has no {CUDA}; it has ")
    assert len(log.splitlines()) == 1


def test_the_hubs_own_variables_and_ours_reach_the_running_server(tmp_path: Path) -> None:
    with LocalHub() as hub:
        files = {"model.onnx": tiny.backbone_onnx()}
        commit = hub.add_repo("tester/private", files, private=True, tokens=("hf_right",))
        backbone = {"source": "hf://tester/private", "format": "onnx", "loader": "onnx", "revision": commit}
        size = {"size": 16, "resize": "squash", "mean": tiny.HALF, "std": tiny.HALF}
        text = json.dumps({"metadata": {"name": "m"}, "spec": {"backbone": backbone, "input": size}})
        environment = {
            "HF_ENDPOINT": hub.url,
            "HF_TOKEN": "hf_right",
            "EVERLEARN_HUB_CACHE": str(tmp_path / "cache"),
            "EVERLEARN_LOG_JSON": "1",
            "EVERLEARN_LOG_LEVEL": "info",
        }
        with RealServer(tmp_path / "data", environment=environment) as server, server.client() as client:
            assert client.models.apply(text).model is not None
            assert list(client.info().execution_providers) == ["CPUExecutionProvider"]
    assert any((tmp_path / "cache").rglob("*.onnx"))
    assert not (tmp_path / "data" / "hub").exists()
    assert json.loads(server.log.splitlines()[0])["event"] == "listening"
    assert "hf_right" not in server.log
