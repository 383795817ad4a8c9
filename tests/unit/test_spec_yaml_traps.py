"""YAML 1.1 reads some plain text as something else. Nothing is adjusted: the message says what to quote."""

from __future__ import annotations

import pytest

from everlearn.errors import SpecError
from everlearn.spec.load import parse

HEAD = "metadata: {name: a}\nspec:\n  backbone: {source: hf://a/b}\n"


def refused(text: str) -> str:
    with pytest.raises(SpecError) as caught:
        parse(text)
    assert len(caught.value.problems) == 1
    return caught.value.message


@pytest.mark.parametrize(
    ("label", "kind"),
    [
        *((word, "a boolean") for word in ("no", "No", "NO", "yes", "on", "On", "off", "true", "False")),
        *(
            (word, "a number")
            for word in ("3", "010", "0x1F", "1_000", "12:30", "1.10", ".5", "1.0e+3", ".inf", ".NaN")
        ),
        ("2024-01-31", "a date"),
        ("~", "null"),
        ("null", "null"),
    ],
)
def test_a_label_that_yaml_takes_for_something_else_is_to_be_quoted(label: str, kind: str) -> None:
    message = refused(HEAD + f"  labels: [good, {label}]\n")
    assert f'spec.labels[1]: must be a string, and YAML reads {label} as {kind}; quote it: "{label}"' in message
    assert parse(HEAD + f'  labels: [good, "{label}"]\n').spec.labels == ("good", label), "the advice is right"


def test_an_empty_item_is_not_a_label() -> None:
    assert "spec.labels[1]: must be a string, and YAML reads nothing as null" in refused(
        HEAD + "  labels:\n  - a\n  -\n"
    )


@pytest.mark.parametrize("word", ["y", "n", "=", "1e10", "08", "1.2.3", "0o17"])
def test_what_yaml_reads_as_text_is_a_label(word: str) -> None:
    assert parse(HEAD + f"  labels: [{word}]\n").spec.labels == (word,)


@pytest.mark.parametrize("revision", ["1234567890" * 4, "01234567" * 5, "1.0", "12.", "1234567890.1234567890e+15"])
def test_a_revision_of_digits_is_to_be_quoted(revision: str) -> None:
    text = "metadata: {name: a}\nspec: {backbone: {source: hf://a/b, revision: %s}}\n"
    message = refused(text % revision)
    assert (
        f'spec.backbone.revision: must be a string, and YAML reads {revision} as a number; quote it: "{revision}"'
        in message
    )


def test_a_revision_of_digits_in_quotes_is_kept_to_the_letter() -> None:
    text = 'metadata: {name: a}\nspec: {backbone: {source: hf://a/b, revision: "%s"}}\n'
    assert parse(text % ("01234567" * 5)).spec.backbone.revision == "01234567" * 5
    assert parse((text % "1.10").replace('"1.10"', "1e10")).spec.backbone.revision == "1e10"


def test_json_that_gives_a_number_for_a_revision_is_refused() -> None:
    text = '{"metadata": {"name": "a"}, "spec": {"backbone": {"source": "hf://a/b", "revision": 1e10}}}'
    assert "spec.backbone.revision: must be a string, not 10000000000.0" in refused(text)


@pytest.mark.parametrize(
    ("word", "advice"), [("3e-4", "write 0.0003"), ("3e-7", "write 3.0e-07"), ("1e2", "write 100.0")]
)
def test_a_number_without_a_point_before_its_exponent_is_text(word: str, advice: str) -> None:
    message = refused(HEAD + f"  gate: {{parity: {word}}}\n")
    assert f"spec.gate.parity: must be a number, not '{word}'; YAML reads {word} as text, {advice}" in message
    number = advice.removeprefix("write ")
    assert parse(HEAD + f"  gate: {{parity: {number}}}\n").spec.gate.parity == float(word), "the advice is right"


def test_a_number_in_quotes_is_text() -> None:
    assert "must be a number, not '0.5'; write it without quotes" in refused(HEAD + '  gate: {min_accuracy: "0.5"}\n')
    assert "must be a whole number, not '3'; write it without quotes" in refused(HEAD + '  gate: {min_samples: "3"}\n')


@pytest.mark.parametrize("number", ["0224", "0b11100000", "0xE0", "3:44", "2_24"])
def test_a_number_in_another_base_is_not_taken_for_a_decimal(number: str) -> None:
    message = refused(HEAD + f"  input: {{size: {number}}}\n")
    assert f"spec.input.size: write {number} as a decimal number; YAML 1.1 reads it in another base (line 4)" in message


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("on: 1", 'on: YAML reads the key on as a boolean; quote it: "on" (line 1)'),
        ("metadata: {name: a, labels: {no: x}}", "metadata.labels.no: YAML reads the key no as a boolean"),
        ("metadata: {name: a, labels: {1: x}}", "metadata.labels.1: YAML reads the key 1 as a number"),
        (
            "metadata: {name: a, labels: {x: off}}",
            "metadata.labels.x: must be a string, and YAML reads off as a boolean",
        ),
        ("metadata: {name: 12}", "metadata.name: must be a string, and YAML reads 12 as a number"),
    ],
)
def test_keys_and_values_of_mappings_are_no_different(line: str, message: str) -> None:
    text = HEAD.split("\n", 1)[1] if line.startswith("metadata") else HEAD
    assert message in refused(line + "\n" + text)


def test_a_word_where_a_choice_is_expected_is_explained_too() -> None:
    message = refused(HEAD + "  serving: {promotion: off}\n")
    assert "spec.serving.promotion: must be a string, and YAML reads off as a boolean" in message
