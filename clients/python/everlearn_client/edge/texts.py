"""Texts on a device: token ids as the server makes them, lines of files, and what tells two texts apart.

Needs the library `tokenizers`, which is loaded with the first text that is answered.

Axes: N texts, L tokens.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from everlearn_client.errors import DataLoss, InvalidArgument

TOKENIZER_FILE: Final = "tokenizer.json"
SUFFIXES: Final = (".txt", ".jsonl")
MAX_FILE_BYTES: Final = 32 * 2**20
_TEXT_KEYS: Final = ("text", "sentence", "content", "x")
_LABEL_KEYS: Final = ("label", "labels", "class", "target", "y")
"""As `everlearn learn` reads them."""


class TextTokens:
    """The tokenizer of one version. What is longer than it reads is cut off, and nothing is remembered."""

    def __init__(self, path: Path, *, sha256: str, max_tokens: int) -> None:
        """Raises DataLoss for a file that is not the one that the model was made with, InvalidArgument where the
        library is not installed."""
        try:
            from tokenizers import Tokenizer
        except ModuleNotFoundError:
            raise InvalidArgument(
                "a model of texts needs tokenizers, not installed here: pip install 'everlearn[edge-text]'"
            ) from None
        try:
            data = path.read_bytes()
        except OSError as error:
            raise DataLoss(f"{path.name} cannot be read: {error.strerror}") from error
        if hashlib.sha256(data).hexdigest() != sha256:
            raise DataLoss(f"{path.name} is not the one that the model was made with")
        self._tokenizer = Tokenizer.from_str(data.decode())
        self._tokenizer.enable_truncation(max_tokens)
        self._tokenizer.no_padding()
        if hasattr(self._tokenizer.model, "_resize_cache"):
            self._tokenizer.model._resize_cache(0)

    def ids(self, texts: Sequence[str]) -> npt.NDArray[np.int64]:
        """int64 [N, L], shorter rows filled up with -1. Raises InvalidArgument for a text without a word."""
        for row, text in enumerate(texts):
            if not text or text.isspace():
                raise InvalidArgument("the text is empty; give at least a word", field=f"samples[{row}]")
        rows = [self._tokenizer.encode(text).ids for text in texts]
        ids_NL = np.full((len(rows), max(map(len, rows), default=0)), -1, np.int64)
        for row, ids in enumerate(rows):
            ids_NL[row, : len(ids)] = ids
        return ids_NL


@dataclass(frozen=True, kw_only=True)
class Line:
    """One text of a file, or of standard input."""

    number: int | None
    """From 1; None where the file is one text."""
    text: str = ""
    labels: list[str] | None = None
    """That stand with it; None for none."""
    error: InvalidArgument | None = None
    """Why it is none."""


def read(path: Path) -> Iterator[Line]:
    """A .txt file is one text, a .jsonl file one a line. Raises InvalidArgument for what is not UTF-8, OSError."""
    with path.open("rb") as file:
        data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise InvalidArgument(f"the file has more than {MAX_FILE_BYTES} bytes", field="file")
    if path.suffix.lower() != ".jsonl":
        yield Line(number=None, text=_decoded(data).strip())
        return
    for number, line in enumerate(data.splitlines(), start=1):
        if line.strip():
            yield read_line(line, number)


def read_line(line: bytes, number: int) -> Line:
    """JSON (a string, or an object with text and label) where it begins like that, or else the text itself."""
    try:
        text = _decoded(line).strip()
        if not text.startswith(("{", '"')):
            return Line(number=number, text=text)
        return _entry(json.loads(text), number)
    except InvalidArgument as error:
        return Line(number=number, error=error)
    except ValueError as error:
        return Line(number=number, error=InvalidArgument(f"the line is not JSON: {error}", field="text"))


def unlike_others(text: str) -> npt.NDArray[np.float64]:
    """A vector whose cosine with that of any other text is far from 1: what `Chooser` compares. Nothing of the text can
    be read from it."""
    digest = hashlib.sha256(text.encode(errors="surrogatepass")).digest()
    return np.frombuffer(digest, np.uint8).astype(np.float64) - 127.5


def _entry(told: Any, number: int) -> Line:
    if isinstance(told, str):
        return Line(number=number, text=told)
    named = {str(key).lower(): value for key, value in told.items()} if isinstance(told, Mapping) else {}
    texts = [named[key] for key in _TEXT_KEYS if isinstance(named.get(key), str)]
    found = [named[key] for key in _LABEL_KEYS if named.get(key) is not None]
    labels = found[0] if found and isinstance(found[0], list) else found
    if len(texts) != 1 or len(found) > 1 or not all(isinstance(each, (str, int, float)) for each in labels):
        raise InvalidArgument('an object such as {"text": "it rains", "label": "weather"} is needed', field="text")
    return Line(number=number, text=texts[0], labels=[str(each).strip() for each in labels] if found else None)


def _decoded(data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InvalidArgument("the text is not UTF-8", field="text") from None
