"""A small network over tensors: its weights are the same everywhere; its halves are the whole, in ONNX and torch."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from everlearn.backbones.identity import IdentityLoader
from everlearn.backbones.lora import add_lora
from everlearn.backbones.mlp import MlpLoader, layers_of
from everlearn.backbones.tail import Tail, TailSession
from everlearn.backbones.tail_manifest import dump_tail, load_tail
from everlearn.backbones.tail_torch import build_tail_module, export_tail, weights_of
from everlearn.errors import BackboneError, IntegrityError, SpecError
from everlearn.runtime.session import TrunkSession
from everlearn.spec.load import parse
from everlearn.spec.lock import pin_text, require_pinned
from everlearn.spec.model import Backbone
from everlearn.spec.plan import StoredCounts, build_plan
from everlearn.values import BackboneFiles, FeaturesBd, TensorFront, Trunk

FRONT = TensorFront(shape=(5, 2), low=(0.0, -40.0), high=(1.0, 85.0))
NET = Backbone(source="mlp:16x8x4", seed=3)
DIGEST = "9f3aee5070c840b3063ae2474dc582b9e167bfada513be803223fb19f44cf93a"


def no_files(backbone: Backbone) -> BackboneFiles:
    return BackboneFiles(source=backbone.source, revision="", paths={}, sha256={})


def whole(backbone: Backbone = NET, front: TensorFront = FRONT) -> Trunk:
    return MlpLoader().build(backbone, no_files(backbone), front, bits=12)


def cut(blocks: int | None, backbone: Backbone = NET) -> tuple[Trunk, Tail]:
    return MlpLoader().build_cut(backbone, no_files(backbone), FRONT, bits=12, blocks=blocks)


def tensors(count: int = 7) -> FeaturesBd:
    low, high = np.array(FRONT.low), np.array(FRONT.high)
    share = np.random.default_rng(0).uniform(size=(count, *FRONT.shape))
    return (low + share * (high - low)).astype(np.float32)


def declared(backbone: str, rest: str = "") -> str:
    read = "{modality: tensor, shape: [5, 2], range: [0, 1]}"
    return f"metadata: {{name: m}}\nspec:\n  backbone: {backbone}\n  input: {read}\n{rest}"


def test_the_same_declaration_is_the_same_weights_for_ever_and_another_is_others() -> None:
    assert whole().provenance["sha256:weights"] == DIGEST
    others = [NET.model_copy(update={"seed": 4}), Backbone(source="mlp:16x8x5", seed=3)]
    assert DIGEST not in {whole(other).provenance["sha256:weights"] for other in others}
    same = NET.model_copy(update={"sha256": DIGEST})
    assert whole(same).digest == whole().digest
    with pytest.raises(IntegrityError) as caught:
        whole(same, TensorFront(shape=(11,), low=(0.0,), high=(1.0,)))
    assert caught.value.field == "spec.backbone.sha256"


def test_weights_have_hes_variance_and_every_layer_its_own() -> None:
    layers = layers_of((300, 200), 100, seed=0)
    for layer, inputs in zip(layers, (100, 300), strict=True):
        assert layer.weight_oi.shape[1] == inputs
        assert layer.weight_oi.std() == pytest.approx(math.sqrt(2 / inputs), rel=0.02)
        assert np.abs(layer.bias_o).max() <= 1 / math.sqrt(inputs)
    shared = layers_of((300, 50, 10), 100, seed=0)[0]
    assert np.array_equal(shared.weight_oi, layers[0].weight_oi)


@pytest.mark.parametrize("blocks", [1, 2, None])
def test_the_halves_are_the_whole_in_onnx_and_in_torch(blocks: int | None) -> None:
    trunk, tail = cut(blocks)
    wanted = TrunkSession(whole().onnx).run(tensors())
    at_cut = TrunkSession(trunk.onnx).run(tensors())
    assert at_cut.shape[1] == tail.input_dim == {1: 8, 2: 16, None: 10}[blocks]
    assert tail.cut == {1: "layers.2", 2: "layers.1", None: ""}[blocks]
    again = load_tail(tail.graph, tail.weights, dump_tail(tail))
    assert again == tail
    module = build_tail_module(again)
    with torch.no_grad():
        in_torch = module(torch.from_numpy(at_cut)).numpy()
    for found in (TailSession(again).run(at_cut), in_torch):
        assert np.abs(found - wanted).max() <= 1e-5 * np.abs(wanted).max()
    assert module.depth_of("layers.2.linear.weight") == len(module.cut_blocks) - 1


def test_what_a_tail_learns_goes_into_its_graph_with_adapters_folded_in() -> None:
    trunk, tail = cut(2)
    module = build_tail_module(tail)
    lora = add_lora(module, 2, seed=1)
    assert lora.targets == ("layers.1.linear", "layers.2.linear")
    with torch.no_grad():
        for parameter in lora.parameters:
            parameter.add_(0.3)
    learned = tail.with_weights(weights_of(module))
    at_cut = TrunkSession(trunk.onnx).run(tensors())
    with torch.no_grad():
        wanted = module(torch.from_numpy(at_cut)).numpy()
    found = TailSession(learned).run(at_cut)
    assert np.abs(found - wanted).max() <= 1e-5 * np.abs(wanted).max()
    assert np.abs(found - TailSession(tail).run(at_cut)).max() > 0.01
    assert export_tail(module, tail) != export_tail(build_tail_module(tail), tail)


def test_networks_that_differ_above_the_cut_alone_have_trunks_of_their_own() -> None:
    (trunk, tail), (other, other_tail) = cut(1), cut(1, Backbone(source="mlp:16x8x5", seed=3))
    values = tensors()
    assert np.array_equal(TrunkSession(trunk.onnx).run(values), TrunkSession(other.onnx).run(values))
    assert tail.digest != other_tail.digest
    assert trunk.digest != other.digest


def test_a_cut_below_all_layers_is_refused_where_a_memory_would_keep_the_values_themselves() -> None:
    for backbone, advice in ((NET, "adapt.blocks: 2"), (Backbone(source="mlp:8", seed=0), "adapt.kind: full")):
        with pytest.raises(BackboneError, match=advice) as caught:
            cut(3, backbone)
        assert caught.value.field == "spec.adapt.blocks"
    identity = Backbone(source="identity")
    with pytest.raises(BackboneError, match="by mlp"):
        IdentityLoader().build_cut(identity, no_files(identity), FRONT, bits=12, blocks=1)


def test_it_has_no_files() -> None:
    files = BackboneFiles(source="folder:/x.safetensors", revision="", paths={}, sha256={})
    with pytest.raises(BackboneError, match="no files"):
        MlpLoader().build(NET, files, FRONT, bits=12)


def test_a_declaration_needs_only_the_widths_and_is_pinned_as_it_is() -> None:
    text = declared("{source: mlp:128x64}")
    model = parse(text)
    assert (model.spec.backbone.loader, model.spec.backbone.seed) == ("mlp", 0)
    require_pinned(model)
    assert pin_text(text, revision="") == text


@pytest.mark.parametrize(
    ("backbone", "field", "message"),
    [
        ("{source: 'mlp:'}", "source", "by their widths"),
        ("{source: mlp:64x}", "source", "by their widths"),
        ("{source: mlp:0}", "source", "1 to 4096"),
        ("{source: mlp:1x1x1x1x1x1x1x1x1}", "source", "up to 8"),
        ("{source: mlp:64, loader: timm}", "loader", "belong together"),
        ("{source: identity, loader: mlp}", "loader", "belong together"),
        ("{source: mlp:64, revision: main}", "revision", "no revisions"),
        ("{source: mlp:64, architecture: vit}", "architecture", "own architecture"),
        ("{source: identity, seed: 1}", "seed", "brings its own"),
        ("{source: mlp:64, seed: -1}", "seed", "at least 0|greater than"),
    ],
)
def test_a_declaration_of_no_such_network_is_refused(backbone: str, field: str, message: str) -> None:
    with pytest.raises(SpecError, match=message) as caught:
        parse(declared(backbone))
    assert caught.value.field == f"spec.backbone.{field}"


@pytest.mark.parametrize(
    ("rest", "words"),
    [
        ("", "none of which learns: its features are random ones"),
        ("  recipe: latent_replay\n  adapt: {kind: last_blocks}\n", "of which the last 1 learn"),
        ("  recipe: latent_replay\n  adapt: {kind: lora}\n", "the last 2 learn by adapt lora"),
        ("  recipe: ewc\n  adapt: {kind: full}\n", "all of which learn"),
    ],
)
def test_a_plan_says_that_the_network_is_random_and_what_of_it_learns(rest: str, words: str) -> None:
    nothing: dict[str, Any] = {"resolved_lock": {}, "downloads": [], "stored": StoredCounts(), "trunk_cached": False}
    plan = build_plan(None, parse(declared("{source: mlp:16x8, seed: 5}", rest)), etag="", **nothing)
    (line,) = [
        line for line in plan.recipe if line.startswith("backbone: mlp:16x8, layers with random weights of seed 5")
    ]
    assert words in line


def test_pixels_are_not_varied_where_there_are_none() -> None:
    rest = "  recipe: ewc\n  adapt: {kind: full}\n  train: {augment: {flip: 0.5}}\n"
    with pytest.raises(SpecError, match="modality tensor"):
        parse(declared("{source: mlp:16x8}", rest))
