"""How an encoder's tokens become one vector: what a repository's files for Sentence Transformers say, as data.

`modules.json` lists the steps behind the encoder, `1_Pooling/config.json` the kind of pooling, and
`sentence_bert_config.json` the length it was trained on. Reimers & Gurevych 2019, "Sentence-BERT", section 3.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

from everlearn.backbones.base import read_verified
from everlearn.errors import BackboneError
from everlearn.values import BackboneFiles

_MODULES, _POOLING, _LENGTH = "modules.json", "1_Pooling/config.json", "sentence_bert_config.json"
_KNOWN_STEPS = ("Transformer", "Pooling", "Normalize")
_FLAG = "pooling_mode_"
_KINDS: dict[str, Literal["mean", "cls"]] = {"mean_tokens": "mean", "cls_token": "cls", "mean": "mean", "cls": "cls"}


@dataclass(frozen=True, kw_only=True)
class Pooling:
    """What follows the encoder."""

    kind: Literal["mean", "cls"] = "mean"
    """`mean` over the text's tokens, special ones included; `cls`: the first token."""
    normalise: bool = False
    """Features of unit length."""


def pooling_of(files: BackboneFiles) -> Pooling:
    """As the files say; the mean where they say nothing. Raises BackboneError for a step that is not known here."""
    steps = [str(step.get("type", "")).rpartition(".")[2] for step in _objects(files, _MODULES)]
    unknown = [step for step in steps if step not in _KNOWN_STEPS]
    if unknown:
        raise BackboneError(f"modules.json has a step {unknown[0][:40]!r}; known are {', '.join(_KNOWN_STEPS)}")
    told = _object(files, _POOLING)
    named = [name.removeprefix(_FLAG) for name, on in told.items() if name.startswith(_FLAG) and on is True]
    named += [told["pooling_mode"]] if isinstance(told.get("pooling_mode"), str) else []
    if len(named) > 1 or any(name not in _KINDS for name in named):
        raise BackboneError(f"{_POOLING} asks for {', '.join(named)[:80]}; one of mean_tokens and cls_token is known")
    return Pooling(kind=_KINDS[named[0]] if named else "mean", normalise="Normalize" in steps)


def trained_tokens(files: BackboneFiles) -> int | None:
    """Tokens of the longest text that the encoder was tuned on, where the files tell. Raises BackboneError."""
    length = _object(files, _LENGTH).get("max_seq_length")
    return length if isinstance(length, int) and length > 2 else None


def _object(files: BackboneFiles, name: str) -> dict[str, Any]:
    told = _read(files, name, {})
    if not isinstance(told, dict):
        raise BackboneError(f"{name} is not a JSON object")
    return told


def _objects(files: BackboneFiles, name: str) -> list[dict[str, Any]]:
    told = _read(files, name, [])
    if not isinstance(told, list) or any(not isinstance(each, dict) for each in told):
        raise BackboneError(f"{name} is not a list of JSON objects")
    return told


def _read(files: BackboneFiles, name: str, default: object) -> object:
    if name not in files.paths:
        return default
    try:
        told: object = json.loads(read_verified(files, name))
    except (ValueError, RecursionError) as error:
        raise BackboneError(f"{name} is not JSON") from error
    return told
