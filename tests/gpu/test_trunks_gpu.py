"""Trunks and tails on a GPU give what they give on a CPU, whatever the batch, and who cannot have one is told why."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from tests import tiny
from tests.gpu.device import FLOAT32, ON_ALL, PROVIDER, relative

from everlearn.backbones.cut import split
from everlearn.backbones.tail import Tail, TailSession
from everlearn.backbones.tail_torch import make_tail
from everlearn.backbones.timm import TimmLoader
from everlearn.runtime.providers import providers_in_use
from everlearn.runtime.session import CPU, TrunkSession
from everlearn.spec.model import Backbone
from everlearn.values import BackboneFiles, FrontConfig, Trunk

pytestmark = ON_ALL
SIDE = 160
"""Of a transformer's table of places, and enough for the others."""


@pytest.fixture(scope="module", params=["test_resnet", "test_efficientnet", "test_vit"])
def trunk(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trunk:
    """A small network of each family, with weights of its own, built as the server builds it."""
    torch.manual_seed(0)
    path: Path = tmp_path_factory.mktemp("network") / "model.safetensors"
    network = timm.create_model(request.param)
    safetensors.torch.save_file(network.state_dict(), path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    files = BackboneFiles(source=f"folder:{path}", revision="", paths={path.name: path}, sha256={path.name: digest})
    declared = Backbone(
        source=files.source, sha256=digest, loader="timm", format="safetensors", architecture=request.param
    )
    front = FrontConfig(height=SIDE, width=SIDE, resize="squash", mean=tiny.HALF, std=tiny.HALF)
    return TimmLoader().build(declared, files, front, bits=12)


def pixels(count: int, *, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 1, (count, 3, SIDE, SIDE)).astype(np.float32)


def test_the_gpu_is_what_a_session_runs_on() -> None:
    assert providers_in_use((PROVIDER, CPU) if PROVIDER != CPU else (CPU,))[0] == PROVIDER


def test_a_trunk_gives_the_same_features_as_on_a_cpu_in_batches_of_any_size(trunk: Trunk) -> None:
    here, there = TrunkSession(trunk.onnx), TrunkSession(trunk.onnx, providers=(PROVIDER,))
    wanted_Nd = np.concatenate([here.run(row[None]) for row in pixels(33)])
    for size in (1, 2, 7, 32, 33):
        found_Nd = there.run(pixels(33)[:size])
        assert found_Nd.shape == wanted_Nd[:size].shape
        assert relative(found_Nd, wanted_Nd[:size]) < FLOAT32, size


def test_threads_share_a_session_on_the_gpu(trunk: Trunk) -> None:
    session = TrunkSession(trunk.onnx, providers=(PROVIDER,))
    given = [pixels(4, seed=seed) for seed in range(24)]
    wanted = [session.run(each) for each in given]
    with ThreadPoolExecutor(8) as pool:
        for found_Nd, wanted_Nd in zip(pool.map(session.run, given), wanted, strict=True):
            assert relative(found_Nd, wanted_Nd) < FLOAT32


@pytest.fixture(scope="module", params=["test_resnet", "test_vit"])
def tail(request: pytest.FixtureRequest) -> Tail:
    """The last block of a small network."""
    torch.manual_seed(0)
    halves = split(timm.create_model(request.param, num_classes=0), 1, torch.randn(2, 3, SIDE, SIDE))
    values_Nn = np.random.default_rng(0).normal(0, 1, (4, int(np.prod(halves.tail.cut_shape)))).astype(np.float32)
    return make_tail(halves, request.param, {}, (SIDE, SIDE), blocks=1, activations_Nd=values_Nn)


def test_a_tail_serves_the_same_features_as_on_a_cpu(tail: Tail) -> None:
    values_Nn = np.random.default_rng(1).normal(0, 1, (32, tail.input_dim)).astype(np.float32)
    wanted_Nd = TailSession(tail).run(values_Nn)
    assert relative(TailSession(tail, provider=PROVIDER).run(values_Nn), wanted_Nd) < FLOAT32


def test_new_weights_take_the_place_of_old_ones_on_the_gpu(tail: Tail) -> None:
    values_Nn = np.random.default_rng(1).normal(0, 1, (8, tail.input_dim)).astype(np.float32)
    changed = tail.with_weights({name: 0.5 * value for name, value in tail.arrays.items()})
    before_Nd = TailSession(tail, provider=PROVIDER).run(values_Nn)
    wanted_Nd = TailSession(changed).run(values_Nn)
    assert relative(before_Nd, wanted_Nd) > 10 * FLOAT32
    assert relative(TailSession(changed, provider=PROVIDER).run(values_Nn), wanted_Nd) < FLOAT32
