"""Completing a declaration from what its backbone says of itself."""

from __future__ import annotations

from dataclasses import replace

import pytest

from everlearn.backbones.base import BackboneDefaults
from everlearn.errors import SpecError
from everlearn.spec.defaults import complete, front_config
from everlearn.spec.load import dump, parse
from everlearn.spec.model import Model

LITE0 = BackboneDefaults(
    architecture="tf_efficientnet_lite0",
    height=224,
    width=224,
    fixed_size=False,
    crop_pct=0.875,
    interpolation="bicubic",
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    feature_dim=1280,
    licence="apache-2.0",
)


def declared(lines: str = "", backbone: str = "source: hf://timm/x") -> Model:
    return parse(f"metadata: {{name: a}}\nspec:\n  backbone: {{{backbone}}}\n{lines}")


def test_everything_left_out_comes_from_the_backbone() -> None:
    done = complete(declared(), LITE0)
    assert done.spec.backbone.architecture == "tf_efficientnet_lite0"
    front = front_config(done)
    assert (front.height, front.width, front.resize, front.crop_pct) == (224, 224, "crop", 0.875)
    assert (front.interpolation, front.mean, front.std) == ("bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def test_what_is_declared_stays() -> None:
    lines = "  input: {size: [96, 128], crop_pct: 1.0, interpolation: bilinear, mean: [0, 0, 0], encodings: [png]}\n"
    done = complete(declared(lines, "source: hf://timm/x, architecture: other"), LITE0)
    front = front_config(done)
    assert (front.height, front.width, front.crop_pct, front.interpolation) == (96, 128, 1.0, "bilinear")
    assert front.mean == (0.0, 0.0, 0.0)
    assert done.spec.input.encodings == ("png",)
    assert done.spec.backbone.architecture == "other"


def test_completing_twice_is_completing_once_and_dumps_to_a_declaration() -> None:
    for lines in ("", "  input: {size: [96, 128]}\n", "  input: {resize: squash}\n"):
        done = complete(declared(lines), LITE0)
        assert complete(done, LITE0) == done
        assert parse(dump(done)) == done


def test_a_square_is_the_same_in_either_spelling() -> None:
    assert complete(declared("  input: {size: 96}\n"), LITE0) == complete(
        declared("  input: {size: [96, 96]}\n"), LITE0
    )


def test_squashing_has_no_crop() -> None:
    done = complete(declared("  input: {resize: squash}\n"), LITE0)
    assert done.spec.input.crop_pct is None
    assert front_config(done).crop_pct == 1.0
    assert front_config(done) == front_config(
        complete(declared("  input: {resize: squash}\n"), replace(LITE0, crop_pct=0.9))
    )


def test_a_size_that_the_backbone_cannot_take_is_refused() -> None:
    fixed = replace(LITE0, fixed_size=True)
    with pytest.raises(SpecError, match="takes 224 x 224 pixels only, not 96 x 96") as caught:
        complete(declared("  input: {size: 96}\n"), fixed)
    assert caught.value.field == "spec.input.size"
    assert complete(declared("  input: {size: 224}\n"), fixed).spec.input.size == 224


def test_a_backbone_whose_own_size_is_beyond_the_limits_needs_a_declared_one() -> None:
    huge = replace(LITE0, height=1280, width=1280)
    with pytest.raises(SpecError, match="declare a size of 16 to 1024") as caught:
        complete(declared(), huge)
    assert caught.value.field == "spec.input.size"
    assert complete(declared("  input: {size: 512}\n"), huge).spec.input.size == 512
    with pytest.raises(SpecError, match="choose another backbone"):
        complete(declared(), replace(huge, fixed_size=True))


def test_timm_needs_an_architecture_from_somewhere() -> None:
    with pytest.raises(SpecError, match="write timm's name of it") as caught:
        complete(declared(), replace(LITE0, architecture=None))
    assert caught.value.field == "spec.backbone.architecture"


def test_an_onnx_graph_gets_no_architecture() -> None:
    onnx = "source: folder:/m.onnx, format: onnx, loader: onnx"
    assert complete(declared(backbone=onnx), LITE0).spec.backbone.architecture is None


def test_a_front_of_an_unfinished_declaration_is_refused() -> None:
    with pytest.raises(SpecError, match="not filled in: interpolation, mean, std") as caught:
        front_config(declared("  input: {size: 96, resize: squash}\n"))
    assert caught.value.field == "spec.input.interpolation"
