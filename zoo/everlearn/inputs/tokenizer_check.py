"""Reads a tokenizer.json with suspicion, before the `tokenizers` library makes a program of it.

Pinned by its digest, it is still a stranger's program that every text goes through, in the server itself: a regular
expression may take for ever on one text (Oniguruma goes back and tries again), a replacement may make gigabytes of a
kilobyte, a template may repeat the text. So there is a list of what a step may be, and each has a bound: work grows
with the text times a constant, and a text grows by no more than a few times.

Format: github.com/huggingface/tokenizers, `tokenizers/src/{normalizers,pre_tokenizers,processors,decoders,models}`.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, NoReturn

from everlearn.errors import BackboneError
from everlearn.strict_json import unique_keys

MAX_STEPS: Final = 32
"""Of all kinds together."""
MAX_PIECES: Final = 16
"""Of a template."""
MAX_CHARACTERS: Final = 64
"""Of a piece of text that a step puts in, and that one character may become."""
MAX_WORD: Final = 200
"""Characters of a word that WordPiece cuts: its work grows with their square."""

_STEPS: Final = {
    "normalizer": "BertNormalizer Lowercase NFC NFD NFKC NFKD Nmt Precompiled Prepend Replace Sequence Strip "
    "StripAccents ByteLevel",
    "pre_tokenizer": "BertPreTokenizer ByteLevel CharDelimiterSplit Digits FixedLength Metaspace Punctuation Sequence "
    "Split UnicodeScripts Whitespace WhitespaceSplit",
    "post_processor": "BertProcessing ByteLevel RobertaProcessing Sequence TemplateProcessing",
    "decoder": "BPEDecoder ByteFallback ByteLevel CTC Fuse Metaspace Replace Sequence Strip WordPiece",
}
_MODELS: Final = ("BPE", "Unigram", "WordLevel", "WordPiece")
_PARTS: Final = ("normalizers", "pretokenizers", "processors", "decoders")
"""What a Sequence calls its steps."""

_GPT2: Final = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_ONE_RUN: Final = re.compile(
    # One character or class of them, and how often: whoever reads it never has to go back.
    r"(?:[^\\\[\](){}.*+?|^$]|\\[sSdDwW]|\\[\\\[\](){}.*+?|^$/-]|\\p\{\^?\w+\}|\[\^?(?:[^\\\[\]&]|\\[sSdDwW\\\]\[-])+\])"
    r"(?:[+]|\{\d{1,2}(?:,(?:\d{1,2})?)?\})?"
)


def check_tokenizer(data: bytes) -> None:
    """Raises BackboneError that says what may not be in a tokenizer.json."""
    try:
        told = json.loads(data, object_pairs_hook=unique_keys)
    except (ValueError, RecursionError) as error:
        _refuse(f"it is not JSON that can be read ({type(error).__name__})")
    if not isinstance(told, dict):
        _refuse("it is not a JSON object")
    steps = [(kind, step) for kind in _STEPS for step in _steps(told.get(kind), kind, depth=0)]
    if len(steps) > MAX_STEPS:
        _refuse(f"it has {len(steps)} steps; {MAX_STEPS} are the most that are taken")
    for _, step in steps:
        _CHECKS.get(step["type"], _nothing)(step)
    _check_model(told.get("model"))


def _steps(told: Any, kind: str, *, depth: int) -> Iterator[dict[str, Any]]:
    if told is None:
        return
    name = told.get("type") if isinstance(told, dict) else None
    if not isinstance(name, str) or name not in _STEPS[kind].split() or depth > 4:
        _refuse(f"{str(name)[:40]!r} is no {kind} that is taken; these are: {', '.join(_STEPS[kind].split())}")
    if name != "Sequence":
        yield told
        return
    for part in _PARTS:
        below = told.get(part, [])
        if not isinstance(below, list) or len(below) > MAX_STEPS:
            _refuse(f"a sequence in its {kind} is none")
        for each in below:
            yield from _steps(each, kind, depth=depth + 1)


def _check_replace(step: Mapping[str, Any]) -> None:
    least = _least_characters(step.get("pattern"))
    content = step.get("content")
    if not isinstance(content, str) or len(content) > least:
        _refuse("a replacement is longer than what it replaces, so that texts grow")


def _check_split(step: Mapping[str, Any]) -> None:
    _least_characters(step.get("pattern"))


def _least_characters(pattern: Any) -> int:
    """That the pattern matches."""
    told = pattern if isinstance(pattern, dict) and len(pattern) == 1 else {}
    text, expression = told.get("String"), told.get("Regex")
    least = len(text) if isinstance(text, str) else 0
    if isinstance(expression, str) and (expression == _GPT2 or _ONE_RUN.fullmatch(expression)):
        counted = re.search(r"\{(\d+)[,}\d]*$", expression)
        least = int(counted[1]) if counted else 1
    if not least:
        _refuse(
            "one of its patterns is neither a text nor a regular expression that is known to end: one character or "
            "class with how often it comes (' {2,}', '[0-9]', '\\\\s+'), or GPT-2's"
        )
    return least


def _check_prepend(step: Mapping[str, Any]) -> None:
    if not isinstance(text := step.get("prepend"), str) or len(text) > MAX_CHARACTERS:
        _refuse(f"what it puts before a text is longer than {MAX_CHARACTERS} characters")


def _check_precompiled(step: Mapping[str, Any]) -> None:
    """Length of a trie | trie | texts, each ended by a zero: a value of the trie is where a text begins."""
    try:
        blob = base64.b64decode(step.get("precompiled_charsmap") or "", validate=True)
    except (ValueError, TypeError):
        _refuse("its table of characters is not base64")
    texts = blob[4 + int.from_bytes(blob[:4], "little") :]
    if max(map(len, texts.split(b"\0"))) > 4 * MAX_CHARACTERS:
        _refuse(f"its table makes of one character more than {MAX_CHARACTERS}")


def _check_template(step: Mapping[str, Any]) -> None:
    for pieces in (step.get("single"), step.get("pair")):
        if not isinstance(pieces, list) or len(pieces) > MAX_PIECES:
            _refuse(f"a template has more than {MAX_PIECES} pieces")
    texts = [piece for piece in step["single"] if isinstance(piece, dict) and "Sequence" in piece]
    if len(texts) != 1:
        _refuse("its template does not have the text once")
    tokens = step.get("special_tokens")
    for token in tokens.values() if isinstance(tokens, dict) else ():
        made = [token.get(name, []) for name in ("ids", "tokens")] if isinstance(token, dict) else [None]
        if not all(isinstance(each, list) and len(each) <= MAX_PIECES for each in made):
            _refuse(f"one of its special tokens stands for more than {MAX_PIECES}")


def _check_model(model: Any) -> None:
    name = model.get("type") if isinstance(model, dict) else None
    if name not in _MODELS:
        _refuse(f"{str(name)[:40]!r} is no model that is taken; these are: {', '.join(_MODELS)}")
    if model.get("dropout"):
        _refuse("it leaves out merges at random (dropout), so that a text would not always be the same tokens")
    if name == "WordPiece" and not _is_count(model.get("max_input_chars_per_word", 100), MAX_WORD):
        _refuse(f"it cuts words of more than {MAX_WORD} characters")


def _is_count(value: object, most: int) -> bool:
    return type(value) is int and 0 <= value <= most


def _nothing(_: Mapping[str, Any]) -> None:
    """Of most steps the library's own code is all there is."""


_CHECKS: Final[Mapping[str, Callable[[Mapping[str, Any]], None]]] = {
    "Precompiled": _check_precompiled,
    "Prepend": _check_prepend,
    "Replace": _check_replace,
    "Split": _check_split,
    "TemplateProcessing": _check_template,
}


def _refuse(what: str) -> NoReturn:
    raise BackboneError(f"tokenizer.json is not taken: {what}")
