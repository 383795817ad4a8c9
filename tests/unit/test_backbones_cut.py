"""A network in two: the halves are the whole, new weights go into the old graph, adapters start and end as nothing."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from tests.unit.backbone_files import (
    LITE0,
    LITE0_FRONT,
    LITE0_PATH,
    ONNX,
    ONNX_FRONT,
    lite0_files,
    onnx_files,
    small_onnx,
)

from everlearn.backbones.child import build_cut_in_child
from everlearn.backbones.cut import TailModule, block_names, split
from everlearn.backbones.lora import add_lora, merge_lora
from everlearn.backbones.onnx import OnnxLoader
from everlearn.backbones.probes import probes_of
from everlearn.backbones.tail import Tail, TailSession, external_names
from everlearn.backbones.tail_manifest import dump_tail, load_tail
from everlearn.backbones.tail_torch import build_tail_module, export_tail, make_tail, weights_of
from everlearn.backbones.timm import TimmLoader
from everlearn.backbones.torch_file import with_safetensors
from everlearn.errors import BackboneError, DataLossError
from everlearn.runtime.session import TrunkSession
from everlearn.values import Trunk

NETWORKS: dict[str, tuple[dict[str, Any], str, tuple[int, ...]]] = {
    # architecture: arguments, the second block from the top, values there of a 64-pixel image
    "test_efficientnet": ({}, "blocks.3.0", (32, 8, 8)),
    "mobilenetv4_conv_small_035": ({}, "blocks.3.5", (48, 2, 2)),
    "convnext_atto": ({}, "stages.3.blocks.0", (320, 2, 2)),
    "resnet10t": ({}, "layer3.0", (128, 8, 8)),
    "vit_tiny_patch16_224": ({"img_size": 64, "depth": 3}, "blocks.1", (17, 192)),
    "swin_tiny_patch4_window7_224": (
        {"img_size": 64, "window_size": 2, "depths": (1, 1, 1, 2)},
        "layers.3.blocks.0",
        (2, 2, 768),
    ),
}
EVERY = pytest.mark.parametrize("architecture", NETWORKS)


@pytest.fixture(scope="module")
def lite0(tmp_path_factory: pytest.TempPathFactory) -> tuple[Trunk, Tail]:
    files = with_safetensors(LITE0, lite0_files(), LITE0_PATH, tmp_path_factory.mktemp("cache"))
    return TimmLoader().build_cut(LITE0, files, LITE0_FRONT, bits=12, blocks=2)


def network(architecture: str) -> torch.nn.Module:
    torch.manual_seed(3)
    model = timm.create_model(architecture, pretrained=False, num_classes=0, **NETWORKS[architecture][0]).eval()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            # Layer scales of 1e-6 and biases of 0 would hide a mistake.
            if name.endswith(("gamma", "bias")):
                tensor.uniform_(0.1, 0.5)
    return model


def images(count: int = 3) -> torch.Tensor:
    return torch.randn(count, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def made(architecture: str, blocks: int | None) -> tuple[Tail, np.ndarray]:
    halves = split(network(architecture), blocks, images())
    with torch.no_grad():
        values = halves.trunk(images()).numpy()
    arguments = NETWORKS[architecture][0]
    return make_tail(halves, architecture, arguments, (64, 64), blocks=blocks, activations_Nd=values), values


def moved(module: torch.nn.Module) -> None:
    """Other weights everywhere, statistics included, each by its own amount."""
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for tensor in module.state_dict().values():
            if tensor.is_floating_point():
                tensor.mul_(1 + 0.3 * torch.rand(tensor.shape, generator=generator))
                tensor.add_(0.02 * torch.rand(tensor.shape, generator=generator))


def features(module: torch.nn.Module, values: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return module(torch.from_numpy(values)).numpy()


def relative(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


@EVERY
def test_the_halves_are_the_whole_and_share_no_parameter(architecture: str) -> None:
    model, (_, cut, shape) = network(architecture), NETWORKS[architecture]
    halves = split(model, 2, images())
    assert (halves.cut, halves.tail.cut_shape) == (cut, shape)
    with torch.no_grad():
        torch.testing.assert_close(halves.tail(halves.trunk(images())), model(images()))
    named = dict(halves.tail.named_parameters())
    assert not any(module.training for module in halves.trunk.modules())
    assert all(torch.equal(dict(model.named_parameters())[name], each) for name, each in named.items())
    # The control: another lowest block makes another network.
    moved(halves.tail.get_submodule(cut))
    with torch.no_grad():
        assert not torch.allclose(halves.tail(halves.trunk(images())), model(images()), rtol=1e-2)


@EVERY
def test_new_weights_in_the_old_graph_are_the_new_network(architecture: str) -> None:
    tail, values = made(architecture, 2)
    module = build_tail_module(tail)
    before = features(module, values)
    assert relative(TailSession(tail).run(values), before) < 1e-5
    moved(module)
    after = features(module, values)
    assert relative(before, after) > 0.02
    learned = tail.with_weights(weights_of(module))
    assert learned.graph_digest == tail.graph_digest
    assert learned.digest != tail.digest
    assert relative(TailSession(learned).run(values), after) < 1e-5
    import onnxruntime as ort

    alone = ort.InferenceSession(export_tail(module, tail), providers=["CPUExecutionProvider"])
    assert relative(alone.run(["features"], {"activations": values})[0], after) < 1e-5
    again = build_tail_module(learned)
    assert np.array_equal(features(again, values), after)


@pytest.mark.parametrize("architecture", ["test_efficientnet", "vit_tiny_patch16_224"])
def test_all_of_a_network_can_be_the_tail(architecture: str) -> None:
    tail, values = made(architecture, None)
    model = network(architecture)
    assert set(tail.arrays) == {name for name, each in model.state_dict().items() if each.is_floating_point()}
    assert np.array_equal(values, images().flatten(1).numpy())
    module = build_tail_module(tail)
    assert {name for name, _ in module.named_parameters()} == {name for name, _ in model.named_parameters()}
    moved(module)
    learned = tail.with_weights(weights_of(module))
    assert relative(TailSession(learned).run(values), features(module, values)) < 1e-5


def test_equal_weights_keep_places_of_their_own_in_the_graph() -> None:
    tail, _ = made("resnet10t", 2)
    # All batch-norm scales of one width start equal; the exporter would merge them.
    assert set(external_names(tail.graph)) == set(tail.arrays)
    assert len(tail.graph) < 20_000


def test_batch_norm_keeps_its_statistics_in_training() -> None:
    tail, values = made("resnet10t", 2)
    module = build_tail_module(tail).train()
    before = features(module, values)
    module(torch.from_numpy(values)).sum().backward()
    assert np.array_equal(features(module.eval(), values), before)
    assert all(each.grad is not None for each in module.parameters())
    # The control: batch norm that does learn its statistics.
    for each in module.modules():
        if isinstance(each, torch.nn.BatchNorm2d):
            each.training = True
    features(module, values)
    assert not np.array_equal(features(module.eval(), values), before)


def test_depth_counts_blocks_from_the_cut_up() -> None:
    module = split(network("convnext_atto"), 3, images()).tail
    assert module.cut_blocks == ("stages.2.blocks.5", "stages.3.blocks.0", "stages.3.blocks.1")
    depths = {name: module.depth_of(name) for name, _ in module.named_parameters()}
    assert depths["stages.2.blocks.5.gamma"] == 0
    assert depths["stages.3.downsample.1.weight"] == 1
    assert depths["stages.3.blocks.0.gamma"] == 1
    assert depths["stages.3.blocks.1.mlp.fc1.weight"] == 2
    assert depths["head.norm.weight"] == 3
    everything = split(network("convnext_atto"), None, images()).tail
    assert everything.depth_of("stages.3.downsample.1.weight") == 10
    whole = split(network("vit_tiny_patch16_224"), None, images()).tail
    assert [whole.depth_of(name) for name in ("pos_embed", "patch_embed.proj.bias", "blocks.0.norm1.bias")] == [0, 0, 0]
    assert [whole.depth_of(name) for name in ("blocks.2.norm1.bias", "norm.weight")] == [2, 3]


@pytest.mark.parametrize(
    ("architecture", "blocks", "message"),
    [
        (
            "resnet10t",
            5,
            r"cannot be cut before its last 5 of 4 blocks; it can be before the last 1 to 4 \(blocks layer1.0",
        ),
        ("resnet10t", 0, "cannot be cut before its last 0"),
        ("eva02_tiny_patch14_224", 1, "it can be before the last none"),
        ("densenet121", 1, "it can be before the last none"),
    ],
)
def test_what_cannot_be_cut_is_refused_with_what_can(architecture: str, blocks: int, message: str) -> None:
    arguments = {"img_size": 56} if "eva" in architecture else {}
    model = timm.create_model(architecture, num_classes=0, **arguments)
    side = 56 if arguments else 64
    with pytest.raises(BackboneError, match=message) as caught:
        split(model, blocks, torch.zeros(1, 3, side, side))
    assert caught.value.field == "spec.recipe.adapt"


def test_a_network_without_blocks_is_refused() -> None:
    with pytest.raises(BackboneError, match="Linear does not say which of its modules are blocks"):
        block_names(torch.nn.Linear(2, 2))


class Shortcut(torch.nn.Module):
    """A network whose end looks past its last block: no chain of modules, though its blocks are."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = torch.nn.Sequential(*(torch.nn.Conv2d(3, 3, 1) for _ in range(3)))

    def group_matcher(self, coarse: bool) -> dict[str, str]:
        return {"blocks": r"^blocks\.(\d+)"}

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.blocks(x)

    def forward_head(self, x: torch.Tensor, pre_logits: bool) -> torch.Tensor:
        return x.mean((2, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.forward_head(self.forward_features(x), pre_logits=True)


def test_a_shortcut_around_the_cut_is_seen() -> None:
    with pytest.raises(BackboneError, match="before the last none"):
        split(Shortcut(), 1, images())


def test_halves_that_differ_from_the_whole_are_refused() -> None:
    class Doubles(Shortcut):
        """Its forward does more than its two parts, which only the comparison can see."""

        def forward_features(self, x: torch.Tensor) -> torch.Tensor:
            return self.blocks(x)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    with pytest.raises(BackboneError, match=r"halves of Doubles at blocks.2 differ from the whole"):
        split(Doubles(), 1, images())


@pytest.mark.parametrize(
    ("architecture", "targets", "found"),
    [
        ("vit_tiny_patch16_224", None, "blocks.1.attn.qkv"),
        ("vit_tiny_patch16_224", ["*.mlp.fc?"], "blocks.2.mlp.fc2"),
        ("mobilenetv4_conv_small_035", None, "conv_head"),
        ("test_efficientnet", ["*conv_dw"], "blocks.4.0.conv_dw"),
        ("convnext_atto", None, "stages.3.blocks.0.mlp.fc1"),
    ],
)
def test_adapters_start_as_nothing_and_end_as_plain_weights(
    architecture: str, targets: list[str] | None, found: str
) -> None:
    tail, values = made(architecture, 2)
    module = build_tail_module(tail)
    before = features(module, values)
    lora = add_lora(module, 1, targets=targets)
    assert found in lora.targets
    assert np.array_equal(features(module, values), before)
    assert weights_of(module).keys() == tail.arrays.keys()
    optimizer = torch.optim.SGD(lora.parameters, lr=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        module(torch.from_numpy(values)).square().sum().sqrt().backward()
        optimizer.step()
    assert {id(each) for each in module.parameters() if each.grad is not None} == {id(each) for each in lora.parameters}
    after = features(module, values)
    assert not np.allclose(after, before, rtol=1e-3)
    learned = tail.with_weights(weights_of(module))
    changed = {name for name in tail.arrays if not np.array_equal(tail.arrays[name], learned.arrays[name])}
    assert changed == {f"{name}.weight" for name in lora.targets}
    assert relative(TailSession(learned).run(values), after) < 1e-5
    merge_lora(module)
    assert relative(features(module, values), after) < 1e-5
    assert {name for name, _ in module.named_parameters()} <= tail.arrays.keys()


def test_adapters_that_fit_nothing_are_refused() -> None:
    module = split(network("resnet10t"), 1, images()).tail
    with pytest.raises(BackboneError, match=r"no layer is called '\*.attn.qkv'; there are layer4.0.conv1") as caught:
        add_lora(module, 4, targets=["*.attn.qkv"])
    assert caught.value.field == "spec.recipe.adapt.lora.targets"
    with pytest.raises(BackboneError, match="takes ranks of 1 to 512, not 600"):
        add_lora(module, 600, targets=["layer4.0.conv2"])
    add_lora(module, 4, targets=["layer4.0.conv2"])
    with pytest.raises(BackboneError, match="has an adapter already"):
        add_lora(module, 4, targets=["layer4.0.conv2"])


def test_adapters_begin_the_same_for_the_same_seed() -> None:
    made_of = [
        add_lora(split(network("convnext_atto"), 1, images()).tail, 2, seed=seed).parameters[0] for seed in (4, 4, 5)
    ]
    assert torch.equal(made_of[0], made_of[1])
    assert not torch.equal(made_of[0], made_of[2])


def test_real_weights_cut_in_two_are_the_real_network(lite0: tuple[Trunk, Tail]) -> None:
    trunk, tail = lite0
    assert (trunk.feature_dim, tail.feature_dim, tail.cut) == (192 * 9, 1280, "blocks.5.3")
    assert trunk.provenance["cut"] == "blocks.5.3"
    assert trunk.provenance["architecture"] == "tf_efficientnet_lite0"
    assert trunk.parity_max_rel_diff <= 1e-4
    whole = TimmLoader().build(LITE0, lite0_files(), LITE0_FRONT, bits=12)
    probes = np.concatenate(probes_of(LITE0_FRONT)[:6])
    cut = TrunkSession(trunk.onnx).run(probes)
    wanted = TrunkSession(whole.onnx).run(probes)
    assert relative(TailSession(tail).run(cut), wanted) < 1e-4
    # The trunk carries nothing of the tail.
    assert len(trunk.onnx) + len(tail.weights) < 1.05 * len(whole.onnx)


def test_positions_of_a_channel_share_a_step(lite0: tuple[Trunk, Tail]) -> None:
    trunk, tail = lite0
    steps = trunk.scale.step_d.reshape(tail.shape)
    assert (steps == steps[:, :1, :1]).all()
    assert len(np.unique(steps)) > 1
    tokens = replace(tail, shape=(3, 2), channel_axis=1)
    assert tokens.channels.tolist() == [0, 1, 0, 1, 0, 1]


def test_a_tail_survives_a_child_and_rest(lite0: tuple[Trunk, Tail], tmp_path: Path) -> None:
    trunk, tail = lite0
    built = build_cut_in_child(LITE0, lite0_files(), LITE0_FRONT, bits=12, blocks=2, work_dir=tmp_path / "work")
    assert (built[0].feature_digest, built[1].digest) == (trunk.feature_digest, tail.digest)
    manifest = dump_tail(tail)
    assert load_tail(tail.graph, tail.weights, manifest) == tail
    for graph, weights, text in [
        (tail.graph + b"x", tail.weights, manifest),
        (tail.graph, tail.weights[:-1] + b"\1", manifest),
        (tail.graph, tail.weights, manifest[:-4]),
        (tail.graph, tail.weights, b"{}"),
    ]:
        with pytest.raises(DataLossError):
            load_tail(graph, weights, text)


def test_weights_that_are_not_the_tails_are_refused(lite0: tuple[Trunk, Tail]) -> None:
    tail = lite0[1]
    good = dict(tail.arrays)
    name = "conv_head.weight"
    for bad, message in [
        ({each: value for each, value in good.items() if each != name}, f"missing {name}"),
        (good | {"other": np.zeros(1, np.float32)}, "unexpected other"),
        (good | {name: good[name][:-1]}, r"conv_head.weight is float32 \[1279, 320, 1, 1\], not"),
        (good | {name: good[name].astype(np.float64)}, "conv_head.weight is float64"),
        (good | {name: good[name] * np.float32("nan")}, "holds NaN"),
    ]:
        with pytest.raises(BackboneError, match=message):
            tail.with_weights(bad)
    assert tail.with_weights(good).digest == tail.digest


def test_a_loader_that_cannot_cut_says_so(tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match="loader onnx cannot cut a network") as caught:
        OnnxLoader().build_cut(ONNX, onnx_files(tmp_path, small_onnx()), ONNX_FRONT, bits=12, blocks=1)
    assert caught.value.field == "spec.recipe.adapt"


def test_a_tail_can_be_copied_and_its_parts_replaced() -> None:
    module: TailModule = split(network("mobilenetv4_conv_small_035"), 1, images()).tail
    twin = copy.deepcopy(module)
    values = np.ones((2, 48 * 4), np.float32)
    before = features(module, values)
    moved(twin)
    assert np.array_equal(features(module, values), before)
    assert not np.allclose(features(twin, values), before)
    # conv_head works in the network's own head: replaced here, it is replaced there.
    module.conv_head = torch.nn.Conv2d(336, 1280, 1)
    assert not np.allclose(features(module, values), before)
