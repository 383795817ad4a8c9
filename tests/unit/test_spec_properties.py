"""For any declaration: dumping and reading gives it back, it does not differ from itself, and typos are named."""

from __future__ import annotations

import string
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from everlearn.errors import SpecError
from everlearn.spec.changes import classify
from everlearn.spec.fields import UNDECLARED, join, sections
from everlearn.spec.load import dump, parse, revalidate

CHECKS = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])

names = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,20}", fullmatch=True)
texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=120)
labels = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=60).filter(
    lambda label: label == label.strip()
)
positive = st.floats(1e-12, 1e6)
unit = st.floats(0, 1)
digests = st.text("0123456789abcdef", min_size=64, max_size=64)
sides = st.integers(16, 1024)

hub_weights = st.fixed_dictionaries(
    {"source": st.just("hf://timm/x.y-z")},
    optional={
        "revision": st.one_of(st.text("0123456789abcdef", min_size=40, max_size=40), st.text("0123456789", min_size=1)),
        "sha256": digests,
        "architecture": names,
        "keys": st.sampled_from(["same", "by_order"]),
    },
)
onnx_files = st.fixed_dictionaries(
    {
        "source": st.just("folder:/models/trunk.onnx"),
        "format": st.just("onnx"),
        "loader": st.just("onnx"),
    },
    optional={"sha256": digests, "output": labels},
)
inputs = st.fixed_dictionaries(
    {},
    optional={
        "size": st.one_of(sides, st.tuples(sides, sides)),
        "resize": st.just("crop"),
        "crop_pct": st.floats(0.01, 1),
        "interpolation": st.sampled_from(["bilinear", "bicubic"]),
        "mean": st.tuples(unit, unit, unit),
        "std": st.tuples(*[st.floats(1e-6, 1)] * 3),
        "encodings": st.permutations(["jpeg", "png", "webp"]).map(tuple),
    },
)
specs = st.fixed_dictionaries(
    {"backbone": st.one_of(hub_weights, onnx_files)},
    optional={
        "input": inputs,
        "labels": st.lists(labels, unique=True, max_size=8).map(tuple),
        "head": st.fixed_dictionaries({"regularization": st.one_of(st.just("auto"), positive)}),
        "gate": st.fixed_dictionaries({}, optional={"max_drop": unit, "parity": positive, "min_accuracy": unit}),
        "retention": st.fixed_dictionaries({"exports": st.integers(1, 1000)}),
    },
)
declarations = st.fixed_dictionaries(
    {
        "metadata": st.fixed_dictionaries({"name": names, "labels": st.dictionaries(texts, texts, max_size=5)}),
        "spec": specs,
    }
)


@CHECKS
@given(declarations)
def test_what_is_dumped_reads_back_the_same(data: dict[str, Any]) -> None:
    model = revalidate(data)
    assert parse(dump(model)) == model
    assert dump(parse(dump(model))) == dump(model)


@CHECKS
@given(declarations)
def test_no_declaration_differs_from_itself(data: dict[str, Any]) -> None:
    assert classify(revalidate(data), revalidate(data)) == ()


def one_edit_away(word: str) -> set[str]:
    """Damerau's typos: a letter missing, doubled, swapped with the next, or another one."""
    cuts = [(word[:i], word[i:]) for i in range(len(word))]
    missing = {a + b[1:] for a, b in cuts}
    doubled = {a + b[0] + b for a, b in cuts}
    swapped = {a + b[1] + b[0] + b[2:] for a, b in cuts if len(b) > 1}
    other = {a + letter + b[1:] for a, b in cuts for letter in string.ascii_lowercase[::5]}
    return missing | doubled | swapped | other | {word.upper(), word.title().replace("_", ""), word.replace("_", "-")}


KEYS = [
    (path, name, tuple(section.model_fields))
    for path, section in sections()
    for name in section.model_fields
    if join(path, name) not in UNDECLARED
]


@pytest.mark.parametrize(("path", "key", "siblings"), KEYS, ids=[join(path, key) for path, key, _ in KEYS])
def test_every_typo_of_a_known_key_names_it(path: str, key: str, siblings: tuple[str, ...]) -> None:
    for typo in sorted(one_edit_away(key) - set(siblings) - {""}):
        data: dict[str, Any] = {"metadata": {"name": "a"}, "spec": {"backbone": {"source": "hf://a/b"}}}
        section = data
        for part in path.split(".") if path else ():
            section = section.setdefault(part, {})
        section[typo] = None
        with pytest.raises(SpecError) as caught:
            revalidate(data)
        assert dict(caught.value.problems)[join(path, typo)] == f"unknown key; did you mean {key!r}?", typo
