"""Steps of a tokenizer.json that mean harm: that hang, that make much of little, that are read in two ways."""

from __future__ import annotations

import base64
import json
from typing import Any

from tests.encoders import tiny_tokenizer

HANGING = (
    "(a+)+$",
    "(a|a)+$",
    "(a*)*b",
    "(?:a|aa)+$",
    "(x+x+)+y",
    r"(a)\1*$",
    "a*",
    "(?=a+)a",
    "[a-z]+[a-z]+!",
    "a{0,9}",
)
"""The first four need longer than the universe is old, or all the tries that Oniguruma has; the others are of their
kind, or match nothing at all."""
HARMLESS = (" {2,}", r"\s+", "[0-9]", r"\p{L}+", "[^a-zA-Z]{2,8}", "-", r"\.", "[.,!?]")


def split(expression: str) -> dict[str, Any]:
    """A pre-tokenizer."""
    return {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": False}


def replace(pattern: dict[str, str], content: str) -> dict[str, Any]:
    """A normalizer."""
    return {"type": "Replace", "pattern": pattern, "content": content}


def doubled(times: int) -> dict[str, Any]:
    """A text becomes 2^times of itself."""
    return {"type": "Sequence", "normalizers": [replace({"String": "a"}, "aa")] * times}


def template(times: int) -> dict[str, Any]:
    """A text comes so often."""
    piece = {"Sequence": {"id": "A", "type_id": 0}}
    pair = [piece, {"Sequence": {"id": "B", "type_id": 1}}]
    return {"type": "TemplateProcessing", "single": [piece] * times, "pair": pair, "special_tokens": {}}


def charsmap(text: str) -> dict[str, Any]:
    """A table whose texts are this one."""
    blob = (4).to_bytes(4, "little") + bytes(4) + text.encode() + b"\0"
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(blob).decode()}


def nested(depth: int) -> dict[str, Any]:
    """Sequences in sequences."""
    step: dict[str, Any] = {"type": "Lowercase"}
    for _ in range(depth):
        step = {"type": "Sequence", "normalizers": [step]}
    return step


def tokenizer(**parts: Any) -> bytes:
    """An honest tokenizer.json with these parts in place of its own."""
    return json.dumps({**json.loads(tiny_tokenizer()), **parts}).encode()


def word_piece(**options: Any) -> bytes:
    """With options of its model."""
    return tokenizer(model={**json.loads(tiny_tokenizer())["model"], **options})


def hostile() -> dict[str, tuple[bytes, str]]:
    """By name: the file, and what is said of it."""
    known = "known to end"
    untyped = {name: value for name, value in split("(a+)+$").items() if name != "type"}
    made = {f"splits by {expression}": (tokenizer(pre_tokenizer=split(expression)), known) for expression in HANGING}
    sequence = {"type": "Sequence", "pretokenizers": [{"type": "Whitespace"}, split("(a+)+$")]}
    twice = tokenizer().replace(
        b'"pre_tokenizer"', b'"pre_tokenizer": %s, "pre_tokenizer"' % json.dumps(untyped).encode()
    )
    return made | {
        "in a sequence": (tokenizer(pre_tokenizer=sequence), known),
        "without its type, as old files are": (tokenizer(pre_tokenizer=untyped), "'None' is no pre_tokenizer"),
        "replaces by": (tokenizer(normalizer=replace({"Regex": "(a+)+$"}, "")), known),
        "decodes by": (tokenizer(decoder=replace({"Regex": "(a+)+$"}, "")), known),
        "doubles": (tokenizer(normalizer=doubled(30)), "texts grow"),
        "grows by a class": (tokenizer(normalizer=replace({"Regex": "[a-z]+"}, "ab")), "texts grow"),
        "replaces nothing": (tokenizer(normalizer=replace({"String": ""}, "")), known),
        "begins with much": (tokenizer(normalizer={"type": "Prepend", "prepend": "a" * 10**6}), "before a text"),
        "repeats the text": (tokenizer(post_processor=template(16)), "the text once"),
        "repeats it often": (tokenizer(post_processor=template(10_000)), "16 pieces"),
        "a token that stands for a number": (
            tokenizer(post_processor={**template(1), "special_tokens": {"x": {"id": "x", "ids": 7, "tokens": ["x"]}}}),
            "16 pieces|special tokens",
        ),
        "makes much of a character": (tokenizer(normalizer=charsmap("a" * 10**5)), "makes of one character"),
        "a table that is none": (tokenizer(normalizer={"type": "Precompiled", "precompiled_charsmap": "é"}), "base64"),
        "sequences in sequences": (tokenizer(normalizer=nested(60)), "no normalizer that is taken"),
        "very many steps": (
            tokenizer(
                normalizer={
                    "type": "Sequence",
                    "normalizers": [{"type": "Sequence", "normalizers": [{"type": "NFC"}] * 30}] * 30,
                }
            ),
            "steps",
        ),
        "words of any length": (word_piece(max_input_chars_per_word=10**9), "cuts words"),
        "by chance": (word_piece(dropout=0.5), "dropout"),
        "another model": (tokenizer(model={"type": "Own"}), "no model that is taken"),
        "another step": (tokenizer(normalizer={"type": "Own"}), "no normalizer that is taken"),
        "a key twice": (twice, "not JSON that can be read"),
        "deep": (b"[" * 100_000, "not JSON that can be read"),
        "a list": (b"[]", "not a JSON object"),
    }


_BYTES = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
_SPACES = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True}
_TABLES = (nested(2), nested(9), charsmap("a"), charsmap("a" * 9999))
_REPLACED = (doubled(3), doubled(30), replace({"Regex": " {2,}"}, " "), replace({"String": "a"}, "\u2581"))
STRANGE_STEPS: dict[str, list[Any]] = {
    "normalizer": [*_TABLES, *_REPLACED, {"type": "NFKC"}, None],
    "pre_tokenizer": [*map(split, (*HANGING, *HARMLESS)), _BYTES, _SPACES],
    "post_processor": [template(1), template(3), template(17), None],
}
"""For those who mutate: harmful ones and others."""
