"""Models that learn by gradient steps, through the real server: heads, moving tails, export, crashes of the trainer."""

from __future__ import annotations

import hashlib
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import psutil
import pytest
from tests import tiny
from tests.real_server import RealServer

from everlearn_client import Client

CLASSES = 3


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small residual network with weights of its own, as a file of timm's."""
    import safetensors.torch
    import timm
    import torch

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("network") / "model.safetensors"
    safetensors.torch.save_file(timm.create_model("test_resnet").state_dict(), path)
    return path


def tailed(network: Path, name: str, **spec: Any) -> str:
    backbone = {
        "source": f"folder:{network}",
        "sha256": hashlib.sha256(network.read_bytes()).hexdigest(),
        "loader": "timm",
        "format": "safetensors",
        "architecture": "test_resnet",
    }
    return tiny.declaration(network, name, **{**spec, "backbone": backbone})


def stream(batches: int, *, first: int = 0) -> list[tuple[Any, list[str]]]:
    """Batches of all classes."""
    found = []
    for number in range(first, first + batches):
        images = np.concatenate([tiny.images(4, label, seed=number) for label in range(CLASSES)])
        found.append((images, [f"c{label}" for label in range(CLASSES) for _ in range(4)]))
    return found


def accuracy(client: Client, model: str) -> float:
    images = np.concatenate([tiny.images(8, label, seed=999) for label in range(CLASSES)])
    top = client.predict(model, images).top
    wanted = [f"c{label}" for label in range(CLASSES) for _ in range(8)]
    return float(np.mean([best[0].label == label for best, label in zip(top, wanted, strict=True)]))


@pytest.mark.parametrize("recipe", ["latent_replay", "der", "lwf"])
def test_recipes_by_gradient_learn_through_the_server(
    server: RealServer, client: Client, backbone: Path, recipe: str
) -> None:
    name = recipe.replace("_", "-")
    server.declare(tiny.declaration(backbone, name=name, recipe=recipe))
    report = client.learn(name, stream(12))
    assert not report.rejected
    assert report.durable_samples == 12 * 12
    assert accuracy(client, name) > 0.9


def test_exemplars_are_herded_and_distilled_while_the_last_block_moves(
    server: RealServer, client: Client, network: Path
) -> None:
    server.declare(tailed(network, "icarl", recipe="icarl"))
    client.learn("icarl", stream(10))
    assert accuracy(client, "icarl") > 0.8
    axes = client.models.version("icarl", "latest").axes
    assert {line.partition(":")[0] for line in axes} >= {"adapt", "memory", "head"}
    assert any(line.startswith("memory: latents") and "herding" in line for line in axes)
    assert any("distill" in line for line in axes)


@pytest.mark.parametrize("kind", ["last_blocks", "lora", "full"])
def test_a_moving_tail_learns_serves_and_leaves_as_one_file(
    server: RealServer, client: Client, network: Path, kind: str, tmp_path: Path
) -> None:
    name = kind.replace("_", "-")
    memory = {"kind": "none"} if kind == "full" else {"kind": "latents", "capacity": 100}
    adapt = {"kind": kind, **({"rank": 2} if kind == "lora" else {})}
    train = {"augment": {"brightness": 0.1, "crop_padding_px": 1}} if kind == "full" else {"freeze_until": 4}
    server.declare(
        tailed(
            network,
            name,
            adapt=adapt,
            head={"kind": "linear"},
            memory=memory,
            train=train,
            retention={"features": "sums" if kind == "full" else "latents"},
        )
    )
    client.learn(name, stream(10))
    assert accuracy(client, name) > 0.8
    client.download(client.export(name), tmp_path)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    image = tiny.images(1, 1, seed=5)
    (scores_NC,) = session.run(["scores"], {"image": image})
    assert np.abs(scores_NC - client.predict(name, image, scores=True).scores_NC).max() < 0.05


@pytest.mark.parametrize("kind", ["last_blocks", "full"])
def test_a_moving_tail_learns_how_much_there_is_of_something(
    server: RealServer, client: Client, network: Path, kind: str, tmp_path: Path
) -> None:
    name = f"how-much-{kind.replace('_', '-')}"
    keeps = kind != "full"
    server.declare(
        tailed(
            network,
            name,
            task="regression",
            outputs=[{"name": "much", "min": 0, "max": 4}],
            adapt={"kind": kind},
            head={"kind": "linear"},
            memory={"kind": "latents", "capacity": 100} if keeps else {"kind": "none"},
            retention={"features": "latents" if keeps else "sums"},
            **({} if keeps else {"train": {"augment": {"mixup": 0.2}}}),
        )
    )
    amounts = np.repeat([1.0, 3.0], 6)[:, None].astype(np.float32)
    for number in range(10):
        images = np.concatenate([tiny.images(6, label, seed=number) for label in range(2)])
        assert not client.learn(name, [(images, amounts)]).rejected
    images = np.concatenate([tiny.images(6, label, seed=999) for label in range(2)])
    found = client.predict(name, images).values_NK
    assert found is not None
    assert np.abs(found - amounts).mean() < 0.5
    client.download(client.export(name), tmp_path)
    (told,) = onnxruntime.InferenceSession(tmp_path / "model.onnx").run(["values"], {"image": images[:1]})
    assert np.abs(told - found[:1]).max() < 0.05


def trainers_of(server: RealServer) -> list[psutil.Process]:
    children = psutil.Process(server.pid).children()
    return [child for child in children if "everlearn.learners.gradient.child" in child.cmdline()]


def test_a_killed_trainer_loses_nothing_and_the_stream_does_not_notice(backbone: Path, tmp_path: Path) -> None:
    digests = []
    for killed in (False, True):
        with RealServer(tmp_path / str(killed)) as server, server.client(client_id="one") as client:
            server.declare(tiny.declaration(backbone, recipe="latent_replay", memory={"kind": "latents"}))
            client.learn("tiny", stream(4))
            if killed:
                (trainer,) = trainers_of(server)
                os.kill(trainer.pid, signal.SIGKILL)
            report = client.learn("tiny", stream(4, first=4))
            assert report.durable_samples == 48
            digests.append(client.models.get("tiny").status.memory_digest)
    assert digests[0] == digests[1]


def test_a_server_that_comes_back_goes_on_where_durable_said(backbone: Path, tmp_path: Path) -> None:
    with RealServer(tmp_path / "data") as server:
        server.declare(tiny.declaration(backbone, recipe="latent_replay"))
        with server.client(client_id="one") as client:
            client.learn("tiny", stream(6))
            before = client.models.get("tiny").status
        server.kill()
        server.start()
        assert not [child for child in trainers_of(server) if child.status() == psutil.STATUS_ZOMBIE]
        with server.client(client_id="one") as client:
            after = client.models.get("tiny").status
            assert after.memory_digest == before.memory_digest
            assert list(after.samples_per_class) == list(before.samples_per_class)
            assert accuracy(client, "tiny") > 0.9


def test_a_first_session_ends_with_its_samples_or_with_the_stream_and_survives_a_restart(
    network: Path, tmp_path: Path
) -> None:
    adapt = {"kind": "first_session", "blocks": 1, "samples": 60, "epochs": 2, "patience_s": 1.0}
    with RealServer(tmp_path / "data") as server:
        patient = {**adapt, "patience_s": 600.0}  # it ends with its samples, however slowly they come
        server.declare(tailed(network, "first", recipe="first_session_analytic", adapt=patient))
        server.declare(tailed(network, "short", recipe="first_session_analytic", adapt=adapt))
        with server.client(client_id="one") as client:
            assert client.learn("short", stream(3)).durable_samples == 36, "patience ends a session that stays short"
            assert client.learn("first", stream(8)).durable_samples == 96
            assert accuracy(client, "first") > 0.8
            client.download(client.export("first"), tmp_path)
            before = client.models.get("first").status
        session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
        image = tiny.images(1, 1, seed=5)
        (scores_NC,) = session.run(["scores"], {"image": image})
        server.kill()
        server.start()
        with server.client(client_id="one") as client:
            assert client.models.get("first").status.memory_digest == before.memory_digest
            assert np.abs(scores_NC - client.predict("first", image, scores=True).scores_NC).max() < 0.05


def test_samples_of_a_session_that_was_cut_off_are_sent_again_by_the_client(network: Path, tmp_path: Path) -> None:
    adapt = {"kind": "first_session", "blocks": 1, "samples": 80, "epochs": 1, "patience_s": 600.0}
    with RealServer(tmp_path / "data") as server:
        server.declare(tailed(network, "first", recipe="first_session_analytic", adapt=adapt))

        def cut_off() -> Any:
            for number, item in enumerate(stream(8)):
                if number == 4:
                    server.kill()
                    server.start()
                yield item

        with server.client(client_id="one") as client:
            report = client.learn("first", cut_off())
            assert report.durable_samples == 96
            assert client.models.get("first").status.sample_count == 96


def test_a_version_tells_how_it_was_learned(server: RealServer, client: Client, backbone: Path) -> None:
    server.declare(tiny.declaration(backbone, "told", recipe="latent_replay", train={"steps": 2}))
    client.learn("told", stream(6))
    version = client.models.version("told", "latest")
    assert version.recipe == "latent_replay"
    assert any(line.startswith("train: steps 2") for line in version.axes)
    assert version.training["steps"] == 2
    assert version.training["learning_rate"] > 0
    assert version.training["log_classes"] == pytest.approx(np.log(3))
