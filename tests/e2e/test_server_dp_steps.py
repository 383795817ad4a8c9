"""Tier `dp` of recipes that learn by gradient steps, through the real server: heads, tails, restarts, refusals."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits
from tests import tiny
from tests.real_server import RealServer

from everlearn_client import Client, InvalidArgument, Tensors
from everlearn_server.check.folder import check

PIXELS, DIGITS = load_digits(return_X_y=True)
PRIVACY = {"tier": "dp", "min_samples": 1280, "epsilon": 8.0, "delta": 1e-5, "noise": 0.61}
TRAIN = {"steps": 30, "optimizer": {"kind": "sgd", "learning_rate": 0.5, "scale_with_batch": "no"}}
STEPS: dict[str, Any] = {"head": {"kind": "linear"}, "memory": {"kind": "none"}, "train": TRAIN, "privacy": PRIVACY}


def declaration(name: str, **changes: Any) -> str:
    read = {"modality": "tensor", "shape": [64], "range": [0.0, 16.0]}
    labels = [str(digit) for digit in range(10)]
    spec = {"backbone": {"source": "identity"}, "input": read, "labels": labels, **STEPS, **changes}
    return json.dumps({"metadata": {"name": name}, "spec": spec})


def batch(at: int) -> tuple[Tensors, list[str]]:
    return Tensors(PIXELS[at : at + 64].astype(np.float32)), [str(digit) for digit in DIGITS[at : at + 64]]


def test_digits_are_learned_by_steps_in_noise_and_survive_a_crash_without_new_noise(server: RealServer) -> None:
    server.declare(declaration("digits"))
    with server.client(client_id="learner") as client:
        client.learn("digits", [batch(at) for at in range(0, 1280, 64)])
        found = client.predict("digits", Tensors(PIXELS[1280:].astype(np.float32))).top
        right = [top[0].label == str(digit) for top, digit in zip(found, DIGITS[1280:], strict=True)]
        assert np.mean(right) > 0.85
        before = client.models.get("digits").status
        assert before.budget.releases == 1
        assert 7.8 < before.budget.epsilon_spent <= 8
        assert list(before.samples_per_class) != np.bincount(DIGITS[:1280], minlength=10).tolist()
        [version, *_] = client.models.versions("digits")
        assert not version.training  # neither a loss nor a norm of gradients is told
    server.kill()
    assert check(server.folder).damaged == []
    server.start()
    with server.client(client_id="learner") as client:
        after = client.models.get("digits").status
    assert (after.memory_digest, after.budget) == (before.memory_digest, before.budget)


def test_blocks_of_a_backbone_learn_in_noise(
    server: RealServer, client: Client, tmp_path_factory: pytest.TempPathFactory
) -> None:
    import safetensors.torch
    import timm
    import torch

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("network") / "model.safetensors"
    safetensors.torch.save_file(timm.create_model("test_resnet").state_dict(), path)
    backbone = {
        "source": f"folder:{path}",
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "loader": "timm",
        "format": "safetensors",
        "architecture": "test_resnet",
    }
    private = {**PRIVACY, "min_samples": 96, "min_class_samples": 1, "epsilon": 8.0, "noise": 1.0}
    changes = {**STEPS, "backbone": backbone, "adapt": {"kind": "last_blocks", "blocks": 1}, "privacy": private}
    changes |= {"labels": ["c0", "c1", "c2"], "train": {**TRAIN, "steps": 4}}
    server.declare(tiny.declaration(path, "blocks", **changes))
    images = [np.concatenate([tiny.images(4, label, seed=seed) for label in range(3)]) for seed in range(8)]
    client.learn("blocks", [(each, [f"c{label}" for label in range(3) for _ in range(4)]) for each in images])
    told = client.models.get("blocks").status
    assert told.sample_count == 96
    assert told.budget.releases == 1
    assert client.predict("blocks", images[0]).top
    assert client.export("blocks")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"memory": {"kind": "latents"}, "retention": {"features": "latents"}}, "each time spends budget"),
        ({"head": {"kind": "cosine"}}, "head cosine has no gradient a row"),
        ({"train": {"mixup": 0.2}}, "train.mixup mixes rows"),
        ({"train": {"early_stop": 3}}, "train.early_stop mixes rows, or goes by what they showed"),
        ({"train": {"optimizer": {"kind": "sgd", "clip_norm": 0.0}}}, "clip_norm 0 bounds nothing"),
        ({"regularize": [{"kind": "l2sp"}]}, "regularize goes by what samples do"),
        ({"loss": {"kind": "er_ace"}}, "loss looks at other rows"),
    ],
)
def test_what_no_bound_on_a_row_covers_is_refused(client: Client, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        client.models.plan(declaration("wrong", **changes))
