"""From a text to token ids. The last place that sees the text; nothing here keeps, logs or quotes it.

Axes: L tokens.
"""

from __future__ import annotations

import json
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from everlearn.errors import BackboneError, InputError, PayloadTooLargeError
from everlearn.inputs.tokenizer_check import check_tokenizer

TokenIdsL = npt.NDArray[np.int64]


class TextTokenizer:
    """A tokenizer.json of the `tokenizers` library, cut to so many tokens. Thread-safe.

    Its own truncation and padding are for other uses and are put aside.
    """

    def __init__(self, data: bytes, max_tokens: int) -> None:
        """Raises BackboneError for bytes that are no tokenizer.json, and for one that could be made to hang."""
        check_tokenizer(data)
        try:
            self._tokenizer = Tokenizer.from_str(data.decode())
            self._tokenizer.enable_truncation(max_tokens)
        except BaseException as error:
            _raise_unless_the_librarys(error)
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
            raise BackboneError(f"tokenizer.json cannot be read: {reason}") from None
        self._tokenizer.no_padding()
        # BPE and Unigram remember words they have met: raw input, for as long as the server runs.
        if hasattr(self._tokenizer.model, "_resize_cache"):
            self._tokenizer.model._resize_cache(0)

    @property
    def largest_id(self) -> int:
        """Of all its tokens, added ones included."""
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=0)

    def ids(self, text: str) -> TokenIdsL:
        """int64 [L], special tokens included; what goes beyond the most tokens is cut off.

        Raises BackboneError where the tokenizer cannot take a text.
        """
        try:
            return np.array(self._tokenizer.encode(text).ids, np.int64)
        except BaseException as error:
            _raise_unless_the_librarys(error)
            raise BackboneError("the model's tokenizer fails on this text; its tokenizer.json is damaged") from None


def _raise_unless_the_librarys(error: BaseException) -> None:
    """What the library foresees is a plain Exception; what it does not is a panic, which Python is told of as more."""
    if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
        raise error


@lru_cache(maxsize=16)
def tokenizer_of(data: bytes, max_tokens: int) -> TextTokenizer:
    """The tokenizer in these bytes; models with the same one share it. Raises BackboneError."""
    return TextTokenizer(data, max_tokens)


def own_max_tokens(data: bytes) -> int | None:
    """At how many tokens a tokenizer.json cuts off by itself; None where it does not. Raises BackboneError."""
    try:
        told = json.loads(data)
        length = (told.get("truncation") or {}).get("max_length")
    except (ValueError, AttributeError, RecursionError) as error:
        raise BackboneError("tokenizer.json is not a JSON object") from error
    return length if isinstance(length, int) and length > 2 else None


def check_text(text: str, *, max_bytes: int, field: str) -> None:
    """Raises InputError for a text without a word, PayloadTooLargeError for one of more UTF-8 bytes than these."""
    # A character takes at least one byte, so a huge text is not even encoded.
    size = len(text) if len(text) > max_bytes else len(text.encode(errors="surrogatepass"))
    if size > max_bytes:
        raise PayloadTooLargeError(f"the text has {size} bytes or more; at most {max_bytes} are accepted", field=field)
    if not text or text.isspace():
        raise InputError("the text is empty; send at least a word", field=field)
