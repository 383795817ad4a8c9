"""What a first session fits: whole blocks, or adapters of low rank that leave as plain weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import timm
import torch

from everlearn.backbones.cut import split
from everlearn.backbones.tail import Tail, TailSession
from everlearn.backbones.tail_torch import make_tail
from everlearn.learners.gradient.session import fitted
from everlearn.spec.model import ModelSpec
from everlearn.values import FeaturesBd

SIZE = 32


def spec_of(**adapt: Any) -> ModelSpec:
    source = {"source": "hf://timm/x", "revision": "0" * 40}
    session = {"kind": "first_session", "blocks": 1, "epochs": 10, **adapt}
    return ModelSpec.model_validate({"backbone": source, "recipe": "first_session_analytic", "adapt": session})


@pytest.fixture(scope="module")
def cut() -> tuple[Tail, FeaturesBd, list[str]]:
    """The last block of a small network, and values that enter it: noise, with some of them larger for one class."""
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    halves = split(timm.create_model("test_resnet", num_classes=0), 1, torch.randn(2, 3, SIZE, SIZE))
    label_N = random.integers(0, 2, 96)
    size = int(np.prod(halves.tail.cut_shape))
    larger_n = random.random(size) < 0.2
    values_Nn = (np.abs(random.normal(0, 1, (96, size))) * (1 + label_N[:, None] * larger_n)).astype(np.float32)
    tail = make_tail(halves, "test_resnet", {}, (SIZE, SIZE), blocks=1, activations_Nd=values_Nn[:4])
    return tail, values_Nn, [f"c{label}" for label in label_N]


def spread(tail: Tail, values_Nn: FeaturesBd, labels: list[str]) -> float:
    """Distance of the classes' means, in standard deviations along it."""
    features_Nd = TailSession(tail).run(values_Nn)
    features_Nd /= np.linalg.norm(features_Nd, axis=1, keepdims=True)  # heads that learn by steps judge directions
    is_first_N = np.array(labels) == "c0"
    apart_d = features_Nd[is_first_N].mean(axis=0) - features_Nd[~is_first_N].mean(axis=0)
    along_N = features_Nd @ apart_d
    within = np.concatenate([along_N[mask] - along_N[mask].mean() for mask in (is_first_N, ~is_first_N)])
    return float((along_N[is_first_N].mean() - along_N[~is_first_N].mean()) / within.std())


@pytest.mark.parametrize("adapt", [{}, {"rank": 2}])
def test_fitted_blocks_tell_classes_better_apart(
    cut: tuple[Tail, FeaturesBd, list[str]], adapt: dict[str, Any]
) -> None:
    tail, values_Nn, labels = cut
    weights = fitted(tail, spec_of(**adapt), values_Nn, labels, device="cpu")
    assert spread(replace(tail, weights=weights), values_Nn, labels) > spread(tail, values_Nn, labels)
    assert safetensors.numpy.load(weights).keys() == tail.arrays.keys(), "adapters leave no trace"


def test_the_same_samples_give_the_same_blocks(cut: tuple[Tail, FeaturesBd, list[str]]) -> None:
    tail, values_Nn, labels = cut
    first, again = (fitted(tail, spec_of(epochs=1), values_Nn, labels, device="cpu") for _ in range(2))
    assert first == again


def test_low_rank_moves_each_layer_by_a_matrix_of_that_rank(cut: tuple[Tail, FeaturesBd, list[str]]) -> None:
    tail, values_Nn, labels = cut
    after = safetensors.numpy.load(fitted(tail, spec_of(rank=2, epochs=1), values_Nn, labels, device="cpu"))
    moved = {name: after[name] - before for name, before in tail.arrays.items() if (after[name] != before).any()}
    assert moved
    ranks = [np.linalg.matrix_rank(change.reshape(len(change), -1), tol=1e-5) for change in moved.values()]
    assert max(ranks) <= 2
