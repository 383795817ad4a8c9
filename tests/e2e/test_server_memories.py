"""Every memory that a solved head can use, through the real server: learned, killed, tightened, read back."""

from __future__ import annotations

import json
import time
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits
from tests.real_server import RealServer

from everlearn_client import Client, Tensors
from everlearn_protos.v1 import models_pb2

MEMORIES: dict[str, dict[str, Any]] = {
    "drifts": {"memory": {"kind": "statistics", "decay": 0.995}},
    "split": {"memory": {"kind": "per_class_statistics"}},
    "herded": {
        "memory": {"kind": "latents", "selection": "herding"},
        "head": {"kind": "ncm"},
        "retention": {"features": "latents"},
    },
    "scattered": {
        "memory": {"kind": "latents", "capacity": 200, "precision": "fp16", "client_share": 0.6, "ttl_s": 3600},
        "head": {"kind": "ncm"},
        "retention": {"features": "latents"},
    },
}
LEAST = {"drifts": 0.9, "split": 0.9, "herded": 0.82, "scattered": 0.8}
"""Accuracy on digits' raw pixels; nearest means reach 0.86 with all samples."""
TRAIN, BATCH = 1200, 40


def declaration(name: str, **changes: Any) -> str:
    read = {"modality": "tensor", "shape": [64], "range": [0.0, 16.0]}
    spec = {"backbone": {"source": "identity"}, "input": read, **MEMORIES.get(name, {}), **changes}
    return json.dumps({"metadata": {"name": name}, "spec": spec})


def digits() -> tuple[Any, list[str]]:
    pixels, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    return pixels[order].astype(np.float32), [f"digit {labels[row]}" for row in order]


def learn(client: Client, name: str, start: int, stop: int) -> None:
    pixels, labels = digits()
    batches = [(Tensors(pixels[at : at + BATCH]), labels[at : at + BATCH]) for at in range(start, stop, BATCH)]
    report = client.learn(name, batches, client_id=f"site-{start}")
    assert report.durable_samples == stop - start


def accuracy(client: Client, name: str) -> float:
    pixels, labels = digits()
    answers = client.predict(name, Tensors(pixels[TRAIN:])).top
    return float(np.mean([top[0].label == label for top, label in zip(answers, labels[TRAIN:], strict=True)]))


@pytest.fixture(scope="module")
def killed(server: RealServer) -> RealServer:
    """Half of the stream is durable in each; then the process was killed and started again."""
    with server.client() as client:
        for name in MEMORIES:
            server.declare(declaration(name, labels=["unseen", "digit 3"]))
            learn(client, name, 0, TRAIN // 2)
    server.kill()
    server.start()
    return server


@pytest.mark.parametrize("name", list(MEMORIES))
def test_a_stream_is_learned_and_goes_on_after_a_kill(killed: RealServer, name: str) -> None:
    with killed.client() as client:
        status = client.models.get(name).status
        assert models_pb2.ModelStatus.State.Name(status.state) == "READY"
        assert status.sample_count == TRAIN // 2
        learn(client, name, TRAIN // 2, TRAIN)
        assert client.models.get(name).status.sample_count == TRAIN
        assert accuracy(client, name) >= LEAST[name]


def bytes_of(client: Client, name: str) -> int:
    return client.models.get(name).status.bytes_at_rest["memory"]


def until_smaller(client: Client, name: str, size: int) -> None:
    begun_s = time.monotonic()
    while bytes_of(client, name) >= size:
        assert time.monotonic() - begun_s < 120, f"{name} still has {bytes_of(client, name)} bytes at rest"
        time.sleep(0.05)


def test_what_a_tighter_declaration_forbids_goes_from_the_disk_without_another_batch(killed: RealServer) -> None:
    with killed.client() as client:
        before = bytes_of(client, "scattered")
        tighter = MEMORIES["scattered"]["memory"] | {"capacity": 50}
        client.models.apply(declaration("scattered", labels=["unseen", "digit 3"], memory=tighter))
        until_smaller(client, "scattered", before / 2)
        assert client.models.get("scattered").status.sample_count == TRAIN


@pytest.mark.parametrize("head", ["ncm", "linear"])
def test_features_come_to_their_end_while_the_stream_rests(killed: RealServer, head: str) -> None:
    memory = {"kind": "latents", "precision": "fp16", "ttl_s": 2}
    spec = {"memory": memory, "retention": {"features": "latents"}, "head": {"kind": head}}
    killed.declare(declaration(f"short-{head}", **spec))
    with killed.client() as client:
        learn(client, f"short-{head}", 0, 400)
        until_smaller(client, f"short-{head}", 400 * 128)
        learn(client, f"short-{head}", 400, 800)
        assert accuracy(client, f"short-{head}") > 0.6
