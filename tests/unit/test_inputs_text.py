"""Text to token ids: bounded whatever comes, and nothing of it kept."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.encoders import tiny_tokenizer

from everlearn.errors import BackboneError, InputError, PayloadTooLargeError
from everlearn.inputs.forms import check, decode_one
from everlearn.inputs.samples import Images, Samples, Tensors, Texts
from everlearn.inputs.text import TextTokenizer, check_text, own_max_tokens, tokenizer_of
from everlearn.runtime.session import join
from everlearn.spec.input import Input
from everlearn.values import TextFront

FRONT = TextFront(tokenizer="0" * 64, max_tokens=16)
DECLARED = Input(modality="text", max_text_bytes=100)


@given(st.text(max_size=300))
@settings(max_examples=200, deadline=None)
def test_any_text_gives_few_ids_of_the_vocabulary(text: str) -> None:
    tokenizer = tokenizer_of(tiny_tokenizer(), 16)
    ids = tokenizer.ids(text)
    assert ids.dtype == np.int64
    assert 2 <= len(ids) <= 16
    assert ids.min() >= 0
    assert ids.max() <= tokenizer.largest_id


def test_truncation_is_the_fronts_own_and_padding_is_nobodys() -> None:
    text = "rain snow wind " * 9
    assert [len(TextTokenizer(tiny_tokenizer(), limit).ids(text)) for limit in (8, 16, 64)] == [8, 16, 29]
    assert len(TextTokenizer(tiny_tokenizer(), 64).ids("rain")) == 3
    assert own_max_tokens(tiny_tokenizer()) == 12


def test_the_end_of_a_text_that_is_cut_is_still_marked() -> None:
    assert TextTokenizer(tiny_tokenizer(), 8).ids("rain " * 50)[-1] == 3


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", InputError),
        (" \n\t\u3000", InputError),
        ("a" * 101, PayloadTooLargeError),
        ("é" * 51, PayloadTooLargeError),
    ],
)
def test_texts_without_a_word_and_long_ones_are_refused_by_name(text: str, error: type[Exception]) -> None:
    samples = Texts(("rain", "snow", text))
    with pytest.raises(error) as caught:
        check(samples, front=FRONT, declared=DECLARED, feature_dim=4)
    assert getattr(caught.value, "field", "") == "samples.texts.texts[2]"
    check(Texts(("é" * 50, "a" * 100)), front=FRONT, declared=DECLARED, feature_dim=4)


@pytest.mark.parametrize("samples", [Images(np.zeros((1, 8, 8, 3), np.uint8)), Tensors(np.zeros((1, 3), np.float32))])
def test_other_forms_are_refused(samples: Samples) -> None:
    with pytest.raises(InputError, match="takes texts"):
        check(samples, front=FRONT, declared=DECLARED, feature_dim=4)


def test_a_prepared_text_is_its_ids_and_a_batch_is_filled_up() -> None:
    tokenizer = TextTokenizer(tiny_tokenizer(), 16)
    samples = Texts(("rain", "rain and snow"))
    rows = [
        decode_one(samples, i, front=FRONT, declared=DECLARED, tokenizer=tokenizer, field="s")[None] for i in (0, 1)
    ]
    batch = join(rows)
    assert batch.shape == (2, rows[1].shape[1])
    assert list(batch[0, :3]) == list(rows[0][0])
    assert (batch[0, 3:] == -1).all()
    assert join(rows[:1]) is rows[0]


def test_a_message_about_a_text_does_not_quote_it() -> None:
    with pytest.raises(PayloadTooLargeError) as caught:
        check_text("secret" * 100, max_bytes=20, field="x")
    assert "secret" not in str(caught.value)


_WORD_IN_MEMORY = """
import sys
from tokenizers import Tokenizer, models, pre_tokenizers
from everlearn.inputs.text import TextTokenizer

letters = sorted(pre_tokenizers.ByteLevel.alphabet())
bpe = Tokenizer(models.BPE({letter: index for index, letter in enumerate(letters)}, []))
bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
encode = TextTokenizer(bpe.to_str().encode(), 64).ids if sys.argv[1] == "ours" else bpe.encode
encode("".join(map(chr, (113, 117, 101, 117, 120, 113, 122, 106, 118))) + " rain")
word = bytes(each ^ 1 for each in (112, 116, 100, 116, 121, 112, 123, 107, 119))
found = 0
with open("/proc/self/maps") as maps, open("/proc/self/mem", "rb", 0) as memory:
    for line in maps:
        place, flags, *rest = line.split()
        if not flags.startswith("rw") or rest[-1].startswith("[") and rest[-1] != "[heap]":
            continue
        first, last = (int(each, 16) for each in place.split("-"))
        memory.seek(first)
        while first < last:
            block = memory.read(min(1 << 20, last - first))
            copies = block.count(word)
            del block
            found += copies
            first += 1 << 20
print(found - 1)  # `word` itself
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/mem")
@pytest.mark.parametrize(("whose", "remembered"), [("ours", False), ("the library's", True)])
def test_no_word_stays_in_a_tokenizers_cache(whose: str, remembered: bool) -> None:
    # Freed memory is overwritten, so that what is found is held by somebody.
    environment = {**os.environ, "MALLOC_PERTURB_": "165", "PYTHONMALLOC": "malloc"}
    done = subprocess.run(
        [sys.executable, "-c", _WORD_IN_MEMORY, whose], capture_output=True, text=True, env=environment, check=True
    )
    assert (int(done.stdout) > 0) == remembered


@pytest.mark.parametrize("data", [b"", b"{}", b"\xff", b'{"version": "9.0"}'])
def test_bytes_that_are_no_tokenizer_are_refused(data: bytes) -> None:
    with pytest.raises(BackboneError, match=r"tokenizer\.json"):
        TextTokenizer(data, 16)
