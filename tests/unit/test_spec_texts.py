"""Declarations of text encoders: what they need, what the backbone fills in, and what pins them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from everlearn.backbones.base import BackboneDefaults
from everlearn.errors import IntegrityError, SpecError
from everlearn.spec.defaults import complete, front_config
from everlearn.spec.load import dump, parse
from everlearn.spec.lock import pin_text, require_pinned, sides_digest, sides_pin
from everlearn.spec.model import Model
from everlearn.values import TextFront

A, B, C = ("a" * 64, "b" * 64, "c" * 64)
MINILM = BackboneDefaults(
    modality="text",
    architecture="bert",
    tokenizer=A,
    max_tokens=256,
    most_tokens=512,
    feature_dim=384,
    licence=None,
)
FOLDER = "source: folder:/m/model.safetensors, loader: transformers"


def declared(read: str = "modality: text", backbone: str = FOLDER) -> Model:
    return parse(f"metadata: {{name: a}}\nspec:\n  backbone: {{{backbone}}}\n  input: {{{read}}}\n")


def test_everything_left_out_comes_from_the_encoder() -> None:
    done = complete(declared(), MINILM)
    assert front_config(done) == TextFront(tokenizer=A, max_tokens=256)
    assert done.spec.backbone.architecture == "bert"
    assert done.spec.input.max_text_bytes == 8192
    assert complete(done, MINILM) == done
    assert parse(dump(done)) == done


def test_what_is_declared_stays() -> None:
    done = complete(declared(f"modality: text, max_tokens: 64, tokenizer: {A}, max_text_bytes: 100"), MINILM)
    assert front_config(done) == TextFront(tokenizer=A, max_tokens=64)
    assert done.spec.input.max_text_bytes == 100


@pytest.mark.parametrize(
    ("read", "field"),
    [
        ("modality: image", "spec.input.modality"),
        ("modality: text, max_tokens: 513", "spec.input.max_tokens"),
        (f"modality: text, tokenizer: {B}", "spec.input.tokenizer"),
    ],
)
def test_what_the_encoder_is_not_is_refused_before_anything_is_built(read: str, field: str) -> None:
    with pytest.raises(SpecError) as caught:
        complete(declared(read), MINILM)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("read", "backbone", "field"),
    [
        ("modality: text, max_tokens: 7", FOLDER, "spec.input.max_tokens"),
        ("modality: text, size: 96", FOLDER, "spec.input"),
        ("modality: text, tokenizer: abc", FOLDER, "spec.input.tokenizer"),
        ("modality: text", f"source: hf://a/b, loader: transformers, sides_sha256: {A}", "spec.backbone.sides_sha256"),
        ("modality: image", f"source: folder:/m/x.safetensors, sides_sha256: {A}", "spec.backbone.sides_sha256"),
        ("modality: text", "source: folder:/m/x.onnx, format: onnx, loader: transformers", "spec.backbone.loader"),
        ("modality: text", f"{FOLDER}, keys: by_order", "spec.backbone.keys"),
    ],
)
def test_what_cannot_be_meant_is_refused(read: str, backbone: str, field: str) -> None:
    with pytest.raises(SpecError) as caught:
        declared(read, backbone)
    assert caught.value.field == field


def test_an_unfinished_declaration_has_no_front() -> None:
    with pytest.raises(SpecError, match="tokenizer, max_tokens") as caught:
        front_config(declared())
    assert caught.value.field == "spec.input.tokenizer"


def test_the_files_beside_the_weights_are_pinned_too() -> None:
    text = "metadata: {name: a}\nspec:\n  backbone: # mine\n    source: folder:/m/model.safetensors\n"
    text += "    loader: transformers\n  input: {modality: text}\n"
    with pytest.raises(SpecError, match="sha256"):
        require_pinned(parse(text))
    half = pin_text(text, revision="", sha256=A)
    with pytest.raises(SpecError) as caught:
        require_pinned(parse(half))
    assert caught.value.field == "spec.backbone.sides_sha256"
    files = {"model.safetensors": A, "config.json": B, "tokenizer.json": C}
    digest = sides_pin(parse(text).spec.backbone, files)
    assert digest == sides_digest({"tokenizer.json": C, "config.json": B})
    whole = pin_text(half, revision="", sha256=A, sides_sha256=digest)
    assert "# mine" in whole
    require_pinned(parse(whole))
    with pytest.raises(IntegrityError) as moved:
        pin_text(whole, revision="", sha256=A, sides_sha256=sides_digest({"config.json": C, "tokenizer.json": C}))
    assert moved.value.field == "spec.backbone.sides_sha256"


def test_a_commit_of_the_hub_and_other_loaders_need_no_second_pin() -> None:
    files = {"model.safetensors": A, "config.json": B}
    assert sides_pin(declared(backbone="source: hf://a/b, loader: transformers").spec.backbone, files) is None
    assert (
        sides_pin(
            parse(
                "metadata: {name: a}\nspec: {backbone: {source: folder:/m/x.onnx, format: onnx, loader: onnx}}"
            ).spec.backbone,
            files,
        )
        is None
    )


def test_the_front_is_part_of_what_a_feature_means() -> None:
    front = TextFront(tokenizer=A, max_tokens=256)
    assert len({front.digest, replace(front, max_tokens=255).digest, replace(front, tokenizer=B).digest}) == 3
