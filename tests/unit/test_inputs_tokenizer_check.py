"""A tokenizer.json of a stranger's is read before it is run: what could hang or grow is refused, the usual is taken."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from tests.faults.hostile_tokenizers import HANGING, HARMLESS, charsmap, hostile, replace, split, tokenizer
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from everlearn.errors import BackboneError
from everlearn.inputs import text as texts
from everlearn.inputs.text import TextTokenizer
from everlearn.inputs.tokenizer_check import _ONE_RUN, _STEPS, check_tokenizer

HOSTILE = hostile()


@pytest.mark.parametrize("name", HOSTILE)
def test_what_could_hang_or_grow_is_refused_before_anything_is_made_of_it(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Never:
        @staticmethod
        def from_str(_: str) -> None:
            raise AssertionError("the library saw the file")

    monkeypatch.setattr(texts, "Tokenizer", Never)
    data, says = HOSTILE[name]
    with pytest.raises(BackboneError, match=says) as refusal:
        TextTokenizer(data, 16)
    assert len(refusal.value.message) < 600


def test_the_library_itself_takes_them_and_panics() -> None:
    """The control, in a process of its own: a panic writes to its standard error, and is more than an Exception."""
    code = f"""
from tokenizers import Tokenizer
tokenizer = Tokenizer.from_str({tokenizer(pre_tokenizer=split(HANGING[1])).decode()!r})
try:
    tokenizer.encode("a" * 40 + "!")
except Exception:
    print("an Exception")
except BaseException as error:
    print(type(error).__name__)
"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert told.stdout.strip() == "PanicException"


def test_a_panic_all_the_same_is_an_error_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    class PanicException(BaseException):
        """As the library's."""

    class Panics:
        def encode(self, _: str) -> None:
            raise PanicException("byte index 3 is not a char boundary; it is inside of `secret`")

    made = TextTokenizer(tokenizer(), 16)
    monkeypatch.setattr(made, "_tokenizer", Panics())
    with pytest.raises(BackboneError) as refusal:
        made.ids("a")
    assert "secret" not in refusal.value.message
    assert refusal.value.__suppress_context__
    monkeypatch.setattr(Panics, "encode", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        made.ids("a")


def test_what_published_encoders_use_is_taken_and_reads_as_before() -> None:
    gpt2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    for part in (
        {"pre_tokenizer": split(gpt2)},
        *({"pre_tokenizer": split(expression)} for expression in HARMLESS),
        {"normalizer": replace({"Regex": " {2,}"}, " ")},
        {"normalizer": replace({"Regex": " {2,}"}, "\u2581")},
        {"normalizer": replace({"String": "``"}, '"')},
    ):
        data = tokenizer(**part)
        plain = Tokenizer.from_str(data.decode())
        plain.no_padding()
        plain.enable_truncation(16)
        assert np.array_equal(TextTokenizer(data, 16).ids("rain,  snow 12"), plain.encode("rain,  snow 12").ids)
    check_tokenizer(tokenizer(normalizer=charsmap("a")))


def test_every_kind_of_file_that_the_library_writes_is_read() -> None:
    vocabulary = {"<s>": 0, "</s>": 1, "<unk>": 2, "a": 3, "\u2581a": 4}
    made = {
        "BERT": (models.WordPiece(vocabulary, unk_token="<unk>"), normalizers.BertNormalizer()),
        "RoBERTa": (models.BPE(vocabulary, []), None),
        "XLM-RoBERTa": (models.Unigram([("<unk>", 0.0), ("a", -1.5)], 0), normalizers.Nmt()),
        "words": (
            models.WordLevel(vocabulary, "<unk>"),
            normalizers.Sequence([normalizers.NFD(), normalizers.Strip()]),
        ),
    }
    steps = {
        "BERT": (pre_tokenizers.BertPreTokenizer(), processors.BertProcessing(("</s>", 1), ("<s>", 0))),
        "RoBERTa": (pre_tokenizers.ByteLevel(), processors.RobertaProcessing(("</s>", 1), ("<s>", 0))),
        "XLM-RoBERTa": (
            pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]),
            processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]),
        ),
        "words": (pre_tokenizers.Digits(), processors.Sequence([processors.ByteLevel()])),
    }
    for name, (model, normalizer) in made.items():
        one = Tokenizer(model)
        if normalizer is not None:
            one.normalizer = normalizer
        one.pre_tokenizer, one.post_processor = steps[name]
        one.decoder = decoders.Metaspace()
        check_tokenizer(one.to_str().encode())
    for kind, library in {"normalizer": normalizers, "pre_tokenizer": pre_tokenizers, "decoder": decoders}.items():
        unknown = {name for name in _STEPS[kind].split() if not hasattr(library, name)}
        assert not unknown, f"no {kind} of the library's has such a name: {unknown}"


@pytest.mark.parametrize("expression", HANGING)
def test_no_expression_that_goes_back_passes_for_one_run(expression: str) -> None:
    assert not _ONE_RUN.fullmatch(expression) or expression == "a{0,9}"
