"""What every choice of `adapt` must do. A new file in everlearn/learners/gradient/adapts is picked up by its name."""

from __future__ import annotations

import inspect
import re
from fnmatch import fnmatchcase
from typing import get_args

import numpy as np
import pytest
import torch

import everlearn.learners.gradient.adapts
from everlearn import plugins
from everlearn.backbones.cut import TailModule
from everlearn.backbones.mlp import MlpLoader
from everlearn.backbones.tail import Tail, TailSession
from everlearn.backbones.tail_torch import weights_of
from everlearn.learners.gradient.adapts import adapt_for
from everlearn.learners.gradient.session import adapted
from everlearn.spec.model import Backbone, ModelSpec
from everlearn.spec.recipe import Adapt as Declared
from everlearn.values import BackboneFiles, TensorFront

KINDS = plugins.kinds(everlearn.learners.gradient.adapts)
LEARNS = {
    "frozen": [],
    "first_session": ["layers.?.linear.weight", "layers.?.linear.bias"],
    "last_blocks": ["layers.?.linear.weight", "layers.?.linear.bias"],
    "lora": ["layers.?.linear.parametrizations.weight.0.down", "layers.?.linear.parametrizations.weight.0.up"],
    "full": ["layers.?.linear.weight", "layers.?.linear.bias"],
}
"""Of each kind the parameters that move, by pattern; no other does, and each pattern meets every block of the tail."""
BLOCKS = {"frozen": 2, "first_session": 2, "last_blocks": 1, "lora": 2, "full": 3}
"""How many of three blocks are above the cut where nothing else is declared; frozen has none, and is given two."""
EVERY = pytest.mark.parametrize("kind", KINDS)


def spec_of(kind: str) -> ModelSpec:
    solved = kind in ("frozen", "first_session")
    recipe = {} if solved else {"head": {"kind": "linear"}, "memory": {"kind": "none"}}
    read = {"modality": "tensor", "shape": (6,), "range": (-1.0, 1.0)}
    backbone = {"source": "mlp:12x10x8"}
    return ModelSpec.model_validate({"backbone": backbone, "input": read, "adapt": {"kind": kind}, **recipe})


def tail_of(kind: str) -> Tail:
    """Cut where a server cuts it."""
    backbone = Backbone(source="mlp:12x10x8", seed=0)
    files = BackboneFiles(source=backbone.source, revision="", paths={}, sha256={})
    blocks = 2 if kind == "frozen" else spec_of(kind).adapt.blocks
    front = TensorFront(shape=(6,), low=(-1.0,), high=(1.0,))
    return MlpLoader().build_cut(backbone, files, front, bits=12, blocks=blocks)[1]


def values(tail: Tail) -> torch.Tensor:
    return torch.rand(16, tail.input_dim, generator=torch.Generator().manual_seed(0))


def stepped(module: torch.nn.Module, x_Nn: torch.Tensor) -> None:
    """Two steps, as the first moves only half of an adapter: the other half is zero."""
    learns = [each for each in module.parameters() if each.requires_grad]
    if not learns:
        return
    optimizer = torch.optim.SGD(learns, lr=0.1, weight_decay=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        module(x_Nn).square().sum(dim=1).mean().backward()
        optimizer.step()


def features(module: torch.nn.Module, x_Nn: torch.Tensor) -> np.ndarray:
    with torch.no_grad():
        return module(x_Nn).numpy()


def test_every_kind_that_is_declared_is_a_file_and_has_a_case() -> None:
    declared = get_args(Declared.model_fields["kind"].annotation)
    assert set(KINDS) == set(declared) == set(LEARNS) == set(BLOCKS)


@EVERY
def test_it_names_its_paper(kind: str) -> None:
    text = inspect.getdoc(type(adapt_for(spec_of(kind)))) or ""
    assert re.search(r"\b[A-Z]\w+ et al\. (19|20)\d\d, \"", text), text


@EVERY
def test_opening_leaves_what_the_tail_computes_and_lies_above_the_declared_cut(kind: str) -> None:
    tail = tail_of(kind)
    module = adapted(tail, spec_of(kind))
    assert isinstance(module, TailModule)
    assert len(module.cut_blocks) == BLOCKS[kind]
    x_Nn = values(tail)
    np.testing.assert_allclose(features(module, x_Nn), TailSession(tail).run(x_Nn.numpy()), atol=1e-5)


@EVERY
def test_what_it_opens_moves_and_nothing_else_does(kind: str) -> None:
    tail = tail_of(kind)
    module = adapted(tail, spec_of(kind))
    before = {name: each.detach().clone() for name, each in module.named_parameters()}
    stepped(module, values(tail))
    moved = {name for name, each in module.named_parameters() if not torch.equal(each, before[name])}
    expected = {name for name in before if any(fnmatchcase(name, pattern) for pattern in LEARNS[kind])}
    assert len(expected) == len(LEARNS[kind]) * BLOCKS[kind]
    assert moved == expected == {name for name, each in module.named_parameters() if each.requires_grad}


@EVERY
def test_what_it_has_learned_leaves_as_plain_weights_in_the_old_graph(kind: str) -> None:
    tail = tail_of(kind)
    module, x_Nn = adapted(tail, spec_of(kind)), values(tail)
    stepped(module, x_Nn)
    learned = tail.with_weights(weights_of(module))
    assert learned.graph_digest == tail.graph_digest
    found = TailSession(learned).run(x_Nn.numpy())
    np.testing.assert_allclose(found, features(module, x_Nn), atol=1e-5)
    assert (learned.digest == tail.digest) == (not LEARNS[kind])
    assert np.allclose(found, TailSession(tail).run(x_Nn.numpy()), atol=1e-3) == (not LEARNS[kind])


@EVERY
def test_opening_twice_gives_the_same(kind: str) -> None:
    tail = tail_of(kind)
    first, second = (dict(adapted(tail, spec_of(kind)).named_parameters()) for _ in range(2))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
