"""Which backbone is recommended, on answers made by hand."""

from __future__ import annotations

import numpy as np
import pytest

from everlearn_client.choosing.comparison import difference
from everlearn_client.choosing.ranking import Candidate, by_accuracy, recommend
from everlearn_client.cli.backbones import parse_candidates
from everlearn_client.errors import InvalidArgument


def of(name: str, right: int, *, ms: float = 1.0, size: int = 1_000_000, count: int = 1000) -> Candidate:
    """Right about its first `right` samples."""
    return Candidate(
        name=name,
        correct_N=np.arange(count) < right,
        log_me=0.0,
        h_score=0.0,
        gcv_residual=0.0,
        feature_dim=8,
        ms_per_image=ms,
        size_bytes=size,
    )


def test_the_best_wins_beyond_the_noise_whatever_it_costs() -> None:
    found = recommend([of("small", 800, ms=1), of("large", 900, ms=50)])
    assert found.name == "large"
    assert "10.0 points better than the next, small, beyond the noise" in found.why


def test_within_the_noise_the_quicker_one_is_enough() -> None:
    found = recommend([of("large", 902, ms=40), of("small", 901, ms=10)])
    assert found.name == "small"
    assert "large is 0.1 points better, which is within the noise of 1000 samples (±0.2 points)" in found.why
    assert "takes 4.0 times as long" in found.why


def test_at_the_same_speed_the_smaller_one_is_enough() -> None:
    found = recommend([of("large", 902, ms=10, size=8_000_000), of("small", 901, ms=10.5, size=2_000_000)])
    assert (found.name, "weighs 4.0 times as much" in found.why) == ("small", True)


def test_the_best_that_is_also_the_cheapest_needs_no_excuse() -> None:
    found = recommend([of("a", 901, ms=10), of("b", 900, ms=40)])
    assert (found.name, "1 more cannot be told from it" in found.why) == ("a", True)


def test_one_candidate_is_taken_and_says_that_it_was_alone() -> None:
    assert "nothing to compare it with" in recommend([of("only", 500)]).why


def test_noise_is_of_the_samples_on_which_two_disagree() -> None:
    shifted = Candidate(**{**vars(of("b", 0)), "correct_N": np.arange(1000) >= 100})
    ahead, error = difference(shifted.correct_N, of("a", 900).correct_N)
    assert ahead == 0
    assert error == pytest.approx(np.sqrt(200) / 1000)
    assert difference(of("a", 900).correct_N, of("b", 900).correct_N) == (0, 0.001)


def test_the_order_of_candidates_does_not_matter() -> None:
    three = [of("a", 700, ms=3), of("b", 702, ms=2), of("c", 701, ms=2)]
    assert recommend(three) == recommend(three[::-1])
    assert [each.name for each in by_accuracy(three)] == ["b", "c", "a"]


SPEC = "apiVersion: everlearn/v1\nkind: Model\nmetadata: {name: m}\n"


def test_candidates_are_documents_or_a_list_of_backbones() -> None:
    first, second = SPEC + "spec: {backbone: {source: hf://t/one}}\n", SPEC + "spec: {backbone: {source: hf://t/two}}\n"
    assert [entry.name for entry in parse_candidates(f"{first}---\n{second}")] == ["one", "two"]
    listed = (
        SPEC + "spec: {head: {kind: lda}}\nbackbones: [{source: hf://t/one}, {source: hf://t/one, architecture: x}]"
    )
    entries = parse_candidates(listed)
    assert [entry.name for entry in entries] == ["one", "x (one)"]
    assert entries[0].declaration["spec"] == {"backbone": {"source": "hf://t/one"}, "head": {"kind": "lda"}}
    assert "backbones" not in entries[0].declaration
    assert [entry.name for entry in parse_candidates(f"{first}---\n{first}")] == ["one #1", "one #2"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no candidates"),
        ("a: [", "not YAML"),
        ("a: 1", "has no spec"),
        (SPEC + "spec: {}", "no spec.backbone.source"),
        (SPEC + "spec: {}\nbackbones: {}", "must be a list"),
        (SPEC + "spec: {backbone: {source: x}}\nbackbones: [{source: y}]", "not both"),
    ],
)
def test_other_files_are_refused_with_what_is_wrong(text: str, words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        parse_candidates(text)
