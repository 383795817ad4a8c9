"""Text encoders of every kind, tiny and with random weights: what is exported is what the library computes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.encoders import KINDS, SENTENCE_FILES, TINY, files_of, padding_of, tiny_config, tiny_files, tiny_tokenizer

from everlearn.backbones.manifest import dump_manifest, load_trunk
from everlearn.backbones.transformers import TransformersLoader
from everlearn.errors import BackboneError, DataLossError
from everlearn.inputs.text import tokenizer_of
from everlearn.runtime.session import TrunkSession, join
from everlearn.values import BackboneFiles, TextFront, Trunk

TEXTS = ["rain", "the price of the flour", "a goal, a goal! the team of the match to the bank", "xyz 123"]


def built(files: BackboneFiles, **fields: Any) -> Trunk:
    told = TransformersLoader().describe(TINY, files)
    assert told.tokenizer is not None
    front = TextFront(**{"tokenizer": told.tokenizer, "max_tokens": told.max_tokens, **fields})
    return TransformersLoader().build(TINY, files, front, bits=12)


def features(trunk: Trunk, texts: list[str]) -> np.ndarray:
    assert isinstance(trunk.front, TextFront)
    prepare = tokenizer_of(trunk.tokenizer, trunk.front.max_tokens)
    return TrunkSession(trunk.onnx).run(join([prepare.ids(text)[None] for text in texts]))


def by_library(kind: str, folder: Path, texts: list[str], max_tokens: int) -> np.ndarray:
    """Hidden values of the last block, averaged over the tokens that the attention mask of a padded batch names."""
    model = KINDS[kind][0].from_pretrained(folder).eval()
    padding = padding_of(kind)
    rows = [tokenizer_of(tiny_tokenizer(padding), max_tokens).ids(text) for text in texts]
    longest = max(map(len, rows))
    ids = torch.tensor([[*row, *[padding] * (longest - len(row))] for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    with torch.inference_mode():
        hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state
    return ((hidden * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)).numpy()


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_of_any_lengths_gives_what_the_library_gives(kind: str, tmp_path: Path) -> None:
    trunk = built(tiny_files(tmp_path, kind))
    expected = by_library(kind, tmp_path, TEXTS, 12)
    assert np.abs(features(trunk, TEXTS) - expected).max() <= 1e-5 * np.abs(expected).max()
    assert trunk.parity_max_rel_diff <= 1e-4
    assert trunk.provenance["architecture"] == kind


def test_what_is_said_of_it_is_what_the_files_say(tmp_path: Path) -> None:
    plain = TransformersLoader().describe(TINY, tiny_files(tmp_path / "plain"))
    assert (plain.modality, plain.architecture, plain.feature_dim) == ("text", "bert", 16)
    assert (plain.max_tokens, plain.most_tokens) == (12, 64)
    tuned = tiny_files(tmp_path / "tuned", "roberta", length=SENTENCE_FILES["sentence_bert_config.json"])
    told = TransformersLoader().describe(TINY, tuned)
    # RoBERTa's places begin behind the padding's.
    assert (told.max_tokens, told.most_tokens) == (20, 62)


def test_pooling_is_the_repositorys_own(tmp_path: Path) -> None:
    mean = features(built(tiny_files(tmp_path / "mean")), TEXTS)
    normalize = [*SENTENCE_FILES["modules.json"], {"type": "sentence_transformers.models.Normalize"}]
    unit = features(built(tiny_files(tmp_path / "unit", modules=normalize)), TEXTS)
    assert np.allclose(unit, mean / np.linalg.norm(mean, axis=1, keepdims=True), atol=1e-6)
    first = features(built(tiny_files(tmp_path / "cls", pooling={"pooling_mode_cls_token": True})), TEXTS)
    assert not np.allclose(first, mean, atol=1e-2)
    assert np.allclose(first, features(built(tiny_files(tmp_path / "new", pooling={"pooling_mode": "cls"})), TEXTS))


@pytest.mark.parametrize(
    ("sides", "message"),
    [
        ({"modules": [{"type": "sentence_transformers.models.Dense"}]}, "'Dense'"),
        ({"modules": {"type": "x"}}, "not a list"),
        ({"pooling": {"pooling_mode_max_tokens": True}}, "max_tokens"),
        ({"pooling": {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}}, "one of"),
        ({"pooling": {"pooling_mode": "weightedmean"}}, "weightedmean"),
    ],
)
def test_a_pooling_that_is_not_known_is_refused(tmp_path: Path, sides: dict[str, Any], message: str) -> None:
    with pytest.raises(BackboneError, match=message):
        built(tiny_files(tmp_path, **sides))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "gpt2"}, "encoders are bert"),
        ({"model_type": ["bert"]}, "encoders are bert"),
        ({"auto_map": {"AutoModel": "evil.Model"}}, "auto_map"),
        ({"is_decoder": True}, "is_decoder"),
        ({"trust_remote_code": True}, "trust_remote_code"),
        ({"text_config": [{"vision": {"trust_remote_code": 1}}]}, "trust_remote_code"),
        ({"encoder": {"auto_map": {"AutoConfig": "a--b.Evil"}}}, "auto_map"),
        ({"_attn_implementation_internal": "evil/kernel"}, "_attn_implementation_internal"),
        ({"quantization_config": {"quant_method": "evil"}}, "quantization_config"),
        ({"hidden_size": 2**40}, "hidden_size beyond that of any encoder"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers beyond that of any encoder"),
        ({"layer_norm_eps": float("inf")}, "layer_norm_eps beyond that of any encoder"),
        ({"position_embedding_type": "relative_key"}, "absolute"),
        ({"hidden_size": [16]}, "no numbers"),
        ({"hidden_size": 15}, "makes no bert"),
        ({"hidden_act": "os.system"}, "makes no bert"),
        ({"num_hidden_layers": 4}, "missing encoder.layer.3"),
        ({"num_hidden_layers": 2}, "unexpected encoder.layer.2"),
        ({"vocab_size": 60}, "token"),
    ],
)
def test_a_config_that_means_another_network_is_refused(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(BackboneError, match=message):
        built(tiny_files(tmp_path, config={**tiny_config("bert"), **fields}))


def test_code_in_a_repository_is_never_touched(tmp_path: Path) -> None:
    files = tiny_files(tmp_path)
    (tmp_path / "modeling_evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(BackboneError, match="auto_map"):
        built(tiny_files(tmp_path, config={**tiny_config("bert"), "auto_map": {"AutoModel": "modeling_evil.Evil"}}))
    assert not (tmp_path / "ran").exists()
    assert "modeling_evil.py" not in files.paths


def test_a_whole_checkpoint_is_read_without_its_head(tmp_path: Path) -> None:
    plain = built(tiny_files(tmp_path / "plain"))
    files = tiny_files(tmp_path / "whole", prefix="bert.")
    path = tmp_path / "whole" / "model.safetensors"
    state = load_file(path)
    state |= {"cls.predictions.bias": torch.zeros(128), "bert.embeddings.position_ids": torch.arange(64)[None]}
    save_file(state, path)
    whole = built(files_of(tmp_path / "whole"))
    assert files.paths.keys() == {"model.safetensors", "config.json", "tokenizer.json"}
    assert np.array_equal(features(whole, TEXTS), features(plain, TEXTS))


def test_weights_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    tiny_files(tmp_path)
    path = tmp_path / "model.safetensors"
    state = load_file(path)
    state["embeddings.word_embeddings.weight"][3, 4] = torch.nan
    save_file(state, path)
    with pytest.raises(BackboneError, match="NaN"):
        built(files_of(tmp_path))


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
@pytest.mark.parametrize("content", [None, b"[]", b"{}", b"\xff{"])
def test_a_missing_or_broken_side_file_is_refused_by_name(tmp_path: Path, name: str, content: bytes | None) -> None:
    tiny_files(tmp_path)
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(BackboneError, match=r"config\.json|tokenizer\.json"):
        built(files_of(tmp_path))


def test_another_tokenizer_or_more_tokens_than_places_are_refused(tmp_path: Path) -> None:
    files = tiny_files(tmp_path)
    for fields, field in (({"tokenizer": "0" * 64}, "tokenizer"), ({"max_tokens": 65}, "max_tokens")):
        with pytest.raises(BackboneError) as caught:
            built(files, **fields)
        assert caught.value.field == f"spec.input.{field}"


def test_a_stored_trunk_brings_its_tokenizer_and_no_other(tmp_path: Path) -> None:
    trunk = built(tiny_files(tmp_path))
    manifest = dump_manifest(trunk)
    assert load_trunk(trunk.onnx, manifest).tokenizer == tiny_tokenizer()
    body = json.loads(manifest)
    body["tokenizer"] = body["tokenizer"].replace("rain", "brain")
    with pytest.raises(DataLossError, match="tokenizer"):
        load_trunk(trunk.onnx, json.dumps(body).encode())
