"""What a seed draws from a space of options, and which recipe is recommended, on answers made by hand."""

from __future__ import annotations

import random

import numpy as np
import pytest
import yaml

from everlearn.spec.load import parse
from everlearn_client.choosing.comparison import noise_errors
from everlearn_client.choosing.search import BY_GRADIENT, SOLVED, draw, parse_space, with_options
from everlearn_client.choosing.tuning import Tried, by_accuracy, choose
from everlearn_client.errors import InvalidArgument


def drawn(text: str, count: int, *, seed: int = 0) -> list[dict[str, object]]:
    source, space = random.Random(seed), parse_space(text)
    return [dict(draw(space, source)) for _ in range(count)]


def test_a_seed_draws_the_same_again_and_another_seed_others() -> None:
    assert drawn(SOLVED, 20) == drawn(SOLVED, 20)
    assert drawn(SOLVED, 20) != drawn(SOLVED, 20, seed=1)


@pytest.mark.parametrize("space", [SOLVED, BY_GRADIENT])
def test_whatever_a_default_space_draws_is_a_declaration(space: str) -> None:
    backbone = {"source": "identity"}
    tensor = {"modality": "tensor", "shape": [4], "range": [0, 1]}
    head = {"kind": "linear"} if space is BY_GRADIENT else {"kind": "ridge"}
    head_of = {"apiVersion": "everlearn/v1", "kind": "Model", "metadata": {"name": "m"}}
    base = {**head_of, "spec": {"backbone": backbone, "input": tensor, "head": head, "memory": {"kind": "statistics"}}}
    kinds = set()
    for options in drawn(space, 100):
        spec = parse(yaml.safe_dump(with_options(base, options))).spec
        kinds.add((spec.head.kind, spec.projection is not None))
    assert len(kinds) >= (2 if space is BY_GRADIENT else 9)


def test_numbers_lie_between_their_ends_on_a_logarithmic_scale_evenly_in_each_decade() -> None:
    values = [each["x"] for each in drawn("x: {low: 0.001, high: 1, log: true}", 900)]
    assert all(isinstance(value, float) and 0.001 <= value <= 1 for value in values)
    decades = np.histogram(np.log10(np.array(values, float)), bins=[-3, -2, -1, 0])[0]
    assert decades.min() > 240
    whole = [each["x"] for each in drawn("x: {low: 2, high: 5, whole: true}", 50)]
    assert set(whole) == {2, 3, 4, 5}


def test_options_go_below_spec_and_null_leaves_one_out() -> None:
    declared = {"metadata": {"name": "m"}, "spec": {"projection": {"dim": 500}, "head": {"kind": "lda"}}}
    changed = with_options(declared, {"train.optimizer.learning_rate": 0.1, "projection": None, "head.kind": "ncm"})
    assert changed["spec"] == {"head": {"kind": "ncm"}, "train": {"optimizer": {"learning_rate": 0.1}}}
    assert declared["spec"] == {"projection": {"dim": 500}, "head": {"kind": "lda"}}
    # A longer path refines what a shorter one sets, in whatever order they are written.
    both = with_options(declared, {"head.regularization": 0.5, "head": {"kind": "ridge"}})
    assert both["spec"]["head"] == {"kind": "ridge", "regularization": 0.5}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "a mapping from paths"),
        ("[1, 2]", "a mapping from paths"),
        ("head.kind: lda", "must have a list of values"),
        ("head.kind: []", "must have a list of values"),
        ("spec.head.kind: [lda]", "not the path of an option below spec"),
        ("x: {low: 1, high: 1}", "low must be a number below high"),
        ("x: {low: 1e-4, high: 1}", "'1e-4' to 1"),
        ("x: {low: 0, high: 1, log: true}", "low must be above 0"),
        ("x: [{low: 0, high: 1, step: 2}]", "low and high, and if need be"),
        ("x: [", "not YAML"),
    ],
)
def test_a_space_that_is_none_is_refused_with_what_would_be_right(text: str, words: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        parse_space(text)
    assert words in refused.value.message
    assert refused.value.field == "--space"


def test_the_default_spaces_are_plain_yaml() -> None:
    assert all(isinstance(yaml.safe_load(text), list) for text in (SOLVED, BY_GRADIENT))


def of(name: str, right: int, *, size: int = 1_000_000, count: int = 1000) -> Tried:
    """Right about its first `right` samples."""
    return Tried(
        name=name,
        options={} if name == "declared" else {"head.kind": name},
        correct_N=np.arange(count) < right,
        learn_us=1.0,
        memory_bytes=size,
        export_bytes=size,
    )


def test_what_is_declared_stays_where_nothing_is_better_beyond_the_noise() -> None:
    kept = choose(of("declared", 800), [of("a", 803), of("b", 700)])
    assert kept.tried.name == "declared"
    assert "the best of 2 others, a, is 0.3 points ahead, which is within the noise" in kept.why
    best = choose(of("declared", 800), [of("b", 700)])
    assert (best.tried.name, "none of 1 others is more accurate" in best.why) == ("declared", True)
    assert choose(of("declared", 800), []).tried.name == "declared"


def test_one_that_is_better_is_taken_and_of_those_that_are_alike_the_smallest() -> None:
    taken = choose(of("declared", 500), [of("a", 900, size=9), of("b", 899, size=2), of("c", 700, size=1)])
    assert taken.tried.name == "b"
    assert "39.9 points better than what is declared" in taken.why
    assert "a is 0.1 points better still, which is within the noise, and larger" in taken.why


def test_the_best_of_many_must_be_further_ahead_than_a_single_rival() -> None:
    """6 of 1000 samples beside none lost are 2.4 errors: enough for one rival, luck among fifty."""
    declared, ahead = of("declared", 800), of("a", 806)
    assert choose(declared, [ahead]).tried is ahead
    assert choose(declared, [ahead, *(of(f"w{index}", 700) for index in range(50))]).tried is declared
    assert noise_errors(1) == pytest.approx(2.0)


def test_of_equals_the_declared_one_is_first() -> None:
    assert [each.name for each in by_accuracy([of("a", 800), of("declared", 800), of("b", 801)])] == [
        "b",
        "declared",
        "a",
    ]
