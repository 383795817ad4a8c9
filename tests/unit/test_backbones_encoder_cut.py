"""Text encoders in two: the halves are the whole, the mask survives a memory, and what learns comes back as a file."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.encoders import KINDS, TINY, padding_of, tiny_files, tiny_tokenizer

from everlearn.backbones.child import build_cut_in_child
from everlearn.backbones.lora import add_lora, merge_lora
from everlearn.backbones.tail import Tail, TailSession
from everlearn.backbones.tail_manifest import dump_tail, load_tail
from everlearn.backbones.tail_torch import build_tail_module, export_tail, weights_of
from everlearn.backbones.transformers import TransformersLoader
from everlearn.errors import BackboneError
from everlearn.inputs.text import tokenizer_of
from everlearn.runtime.session import TrunkSession, join
from everlearn.spec.model import Backbone
from everlearn.values import BackboneFiles, TextFront, Trunk

TEXTS = ["rain", "the price of the flour", "a goal, a goal! the team of the match to the bank", "xyz 123"]
PLACES = 12
LAYERS = {"distilbert": "transformer.layer"}


def front_of(kind: str) -> TextFront:
    return TextFront(tokenizer=hashlib.sha256(tiny_tokenizer(padding_of(kind))).hexdigest(), max_tokens=PLACES)


def cut(files: BackboneFiles, kind: str = "bert", blocks: int | None = 1) -> tuple[Trunk, Tail]:
    return TransformersLoader().build_cut(TINY, files, front_of(kind), bits=12, blocks=blocks)


def ids_of(kind: str = "bert") -> np.ndarray:
    prepare = tokenizer_of(tiny_tokenizer(padding_of(kind)), PLACES)
    return join([prepare.ids(text)[None] for text in TEXTS])


def close(found: np.ndarray, expected: np.ndarray, share: float = 1e-5) -> bool:
    return bool(np.abs(found - expected).max() <= share * np.abs(expected).max())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("blocks", [1, 3])
def test_trunk_and_tail_are_the_whole_at_every_length(kind: str, blocks: int, tmp_path: Path) -> None:
    files = tiny_files(tmp_path, kind)
    whole = TransformersLoader().build(TINY, files, front_of(kind), bits=12)
    trunk, tail = cut(files, kind, blocks)
    expected = TrunkSession(whole.onnx).run(ids_of(kind))
    at_cut = TrunkSession(trunk.onnx).run(ids_of(kind))
    assert close(TailSession(tail).run(at_cut), expected)
    # One by one and in a batch are the same; nothing of the padding comes through.
    alone = np.concatenate([TrunkSession(trunk.onnx).run(row[row >= 0][None]) for row in ids_of(kind)])
    assert close(alone, at_cut)
    name = LAYERS.get(kind, "encoder.layer")
    assert (tail.cut, tail.shape, tail.blocks) == (f"{name}.{3 - blocks}", (PLACES, 16), blocks)
    assert any(each.startswith(f"{name}.2.") for each in tail.arrays)
    assert not any(each.startswith(f"{name}.{2 - blocks}.") for each in tail.arrays)
    assert not any("embeddings" in each for each in tail.arrays)


def test_places_without_a_token_stay_empty_through_a_memory_of_integers(tmp_path: Path) -> None:
    trunk, tail = cut(tiny_files(tmp_path), blocks=2)
    at_cut = TrunkSession(trunk.onnx).run(ids_of())
    kept = trunk.scale.restore(trunk.scale.quantise(at_cut))
    lengths = (ids_of() >= 0).sum(1)
    there = (kept.reshape(len(TEXTS), *tail.shape) != 0).any(2)
    assert list(there.sum(1)) == list(lengths)
    assert close(TailSession(tail).run(kept), TailSession(tail).run(at_cut), 0.02)


def test_places_of_one_channel_share_a_scale(tmp_path: Path) -> None:
    trunk, tail = cut(tiny_files(tmp_path))
    assert trunk.feature_dim == PLACES * 16
    steps = trunk.scale.step_d.reshape(tail.shape)
    assert (steps == steps[0]).all()


def test_a_tail_is_read_back_and_learns_and_is_exported(tmp_path: Path) -> None:
    trunk, tail = cut(tiny_files(tmp_path), blocks=2)
    again = load_tail(tail.graph, tail.weights, dump_tail(tail))
    assert again == tail
    module = build_tail_module(again)
    at_cut = TrunkSession(trunk.onnx).run(ids_of())
    before = module(torch.from_numpy(at_cut))
    assert close(before.detach().numpy(), TailSession(tail).run(at_cut))
    (before[:, 0] - before[:, 1]).sum().backward()
    with torch.no_grad():
        for parameter in module.parameters():
            assert parameter.grad is not None
            parameter -= 0.01 * parameter.grad
    after = module(torch.from_numpy(at_cut)).detach().numpy()
    assert not close(after, before.detach().numpy(), 1e-3)
    learned = again.with_weights(weights_of(module))
    assert close(TailSession(learned).run(at_cut), after)
    assert learned.graph_digest == tail.graph_digest
    alone = TrunkSession(export_tail(module, again))
    assert close(alone.run(at_cut), after)


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_go_to_the_attention(kind: str, tmp_path: Path) -> None:
    _, tail = cut(tiny_files(tmp_path, kind), kind)
    module = build_tail_module(tail)
    lora = add_lora(module, 2)
    assert len(lora.targets) == 4
    assert all("attention" in target for target in lora.targets)
    merge_lora(module)
    assert weights_of(module).keys() == tail.arrays.keys()


def test_depth_counts_from_the_cut(tmp_path: Path) -> None:
    _, tail = cut(tiny_files(tmp_path), blocks=2)
    module = build_tail_module(tail)
    assert {module.depth_of(name) for name, _ in module.named_parameters() if ".layer.1." in name} == {0}
    assert {module.depth_of(name) for name, _ in module.named_parameters() if ".layer.2." in name} == {1}


@pytest.mark.parametrize("blocks", [None, 0, 4])
def test_more_than_its_blocks_cannot_be_cut_off(tmp_path: Path, blocks: int | None) -> None:
    with pytest.raises(BackboneError, match="last 1 to 3 of its blocks") as caught:
        cut(tiny_files(tmp_path), blocks=blocks)
    assert caught.value.field == "spec.recipe.adapt"


def test_a_cut_made_in_the_build_process_is_the_same(tmp_path: Path) -> None:
    files = tiny_files(tmp_path / "files")
    trunk, tail = cut(files)
    backbone = Backbone.model_validate(TINY.model_dump())
    theirs = build_cut_in_child(backbone, files, front_of("bert"), bits=12, blocks=1, work_dir=tmp_path / "work")
    assert (theirs[0].feature_digest, theirs[1].digest) == (trunk.feature_digest, tail.digest)
    assert theirs[0].tokenizer == tiny_tokenizer()
