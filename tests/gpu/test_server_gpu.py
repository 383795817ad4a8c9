"""The whole path on a GPU: a real server started with `--device cuda` streams, learns, predicts, exports, restarts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import safetensors.torch
import timm
import torch
from tests import tiny
from tests.e2e.test_server_gradient import CLASSES, accuracy, stream, tailed
from tests.gpu.device import DEVICE, FLOAT32, ON_ALL, PROVIDER, SCORES, relative
from tests.real_server import RealServer

from everlearn_client import Client

pytestmark = ON_ALL
LATENTS = {"memory": {"kind": "latents", "capacity": 100}, "retention": {"features": "latents"}}
SUMS = {"memory": {"kind": "none"}, "retention": {"features": "sums"}}
MOVING = {
    "last_blocks": {"adapt": {"kind": "last_blocks"}, **LATENTS, "train": {"freeze_until": 4}},
    "lora": {"adapt": {"kind": "lora", "rank": 2}, **LATENTS},
    "full": {"adapt": {"kind": "full"}, **SUMS, "train": {"augment": {"brightness": 0.1, "crop_padding_px": 1}}},
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    folder = tmp_path_factory.mktemp("server") / "data"
    with RealServer(folder, arguments=("--device", DEVICE)) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: RealServer) -> Iterator[Client]:
    with server.client(client_id="tester", timeout_s=120) as connected:
        yield connected


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small residual network with weights of its own, as a file of timm's."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("network") / "model.safetensors"
    safetensors.torch.save_file(timm.create_model("test_resnet").state_dict(), path)
    return path


def exported(client: Client, name: str, folder: Path, image: Any) -> Any:
    """Scores of the file that leaves, on this machine's CPU."""
    client.download(client.export(name), folder)
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    (scores_NC,) = session.run(["scores"], {"image": image})
    return scores_NC


def test_the_server_says_what_it_runs_on(client: Client) -> None:
    assert client.info().execution_providers[0] == PROVIDER


def test_sums_learned_on_the_gpu_serve_and_leave_as_those_of_a_cpu(
    server: RealServer, client: Client, tmp_path: Path
) -> None:
    text = tiny.declaration(tiny.write_backbone(tmp_path), "sums")
    server.declare(text)
    assert client.learn("sums", stream(12)).durable_samples == 144
    assert accuracy(client, "sums") > 0.9
    images = np.concatenate([tiny.images(8, label, seed=5) for label in range(CLASSES)])
    there_NC = client.predict("sums", images, scores=True).scores_NC
    with RealServer(tmp_path / "cpu") as other, other.client(client_id="tester") as plain:
        other.declare(text)
        plain.learn("sums", stream(12))
        here_NC = plain.predict("sums", images, scores=True).scores_NC
    # Features are rounded to 12 bits before they are summed, so that a difference may be a whole step of some.
    assert relative(there_NC, here_NC) < 10 * FLOAT32
    assert np.abs(exported(client, "sums", tmp_path, images[:1]) - there_NC[:1]).max() < SCORES


@pytest.mark.parametrize("kind", MOVING)
def test_a_moving_tail_learns_serves_and_leaves_as_one_file(
    server: RealServer, client: Client, network: Path, kind: str, tmp_path: Path
) -> None:
    name = kind.replace("_", "-")
    server.declare(tailed(network, name, head={"kind": "linear"}, **MOVING[kind]))
    assert not client.learn(name, stream(10)).rejected
    assert accuracy(client, name) > 0.8
    image = tiny.images(1, 1, seed=5)
    found_NC = client.predict(name, image, scores=True).scores_NC
    assert np.abs(exported(client, name, tmp_path, image) - found_NC).max() < SCORES
    assert client.models.version(name, "latest").training["steps"] == 4


def test_a_first_session_is_fitted_on_the_gpu(
    server: RealServer, client: Client, network: Path, tmp_path: Path
) -> None:
    adapt = {"kind": "first_session", "blocks": 1, "samples": 60, "epochs": 2, "patience_s": 1.0}
    server.declare(tailed(network, "first", recipe="first_session_analytic", adapt=adapt))
    assert client.learn("first", stream(8)).durable_samples == 96
    assert accuracy(client, "first") > 0.8
    image = tiny.images(1, 1, seed=5)
    found_NC = client.predict("first", image, scores=True).scores_NC
    assert np.abs(exported(client, "first", tmp_path, image) - found_NC).max() < SCORES


def test_what_was_learned_on_the_gpu_is_taken_up_on_a_cpu_and_again_on_the_gpu(network: Path, tmp_path: Path) -> None:
    on_device = ("--device", DEVICE)
    server = RealServer(tmp_path / "data", arguments=on_device)
    for turn, arguments in enumerate((on_device, (), on_device)):
        server.arguments = list(arguments)
        with server, server.client(client_id="one", timeout_s=120) as client:
            if not turn:
                server.declare(tailed(network, "moved", head={"kind": "linear"}, **MOVING["last_blocks"]))
            assert client.learn("moved", stream(5, first=5 * turn)).durable_samples == 60
            assert client.models.get("moved").status.sample_count == 60 * (turn + 1)
            assert accuracy(client, "moved") > 0.6
