"""Forgetting of a stream's steps: what it equals, what does not matter, and that a stop is not noticed."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from everlearn.metrics import Steps, average_accuracy, backward_transfer, forgetting
from everlearn.metrics.steps import END

BATCHES = st.lists(
    st.tuples(st.sampled_from(["", "a", "b", "c", "d"]), st.integers(0, 90), st.floats(0, 1)).map(
        lambda each: (each[0], each[1], int(each[1] * each[2]))
    ),
    max_size=40,
)


def counted(batches: list[tuple[str, int, int]], steps: Steps | None = None) -> Steps:
    steps = steps or Steps()
    for step, tested, correct in batches:
        steps.count(step, tested=tested, correct=correct)
    return steps


@given(size=st.integers(2, 6), seed=st.integers(0, 2**32 - 1))
def test_where_every_step_comes_again_the_figures_are_those_of_the_literature(size: int, seed: int) -> None:
    correct_TT = np.random.default_rng(seed).integers(0, 51, (size, size))
    steps = Steps()
    for after in range(size):
        for on in range(after, -1, -1):
            steps.count(f"s{on}", tested=50, correct=int(correct_TT[after, on]))
    accuracy_TT, found = correct_TT / 50, steps.summary()
    assert found["tested_again"] == size - 1
    assert found["forgetting"] == pytest.approx(forgetting(accuracy_TT))
    assert found["backward_transfer"] == pytest.approx(backward_transfer(accuracy_TT))
    assert found["average_accuracy"] == pytest.approx(average_accuracy(accuracy_TT))


@given(before=BATCHES, after=BATCHES)
def test_a_record_that_was_stored_in_between_goes_on_as_if_it_had_not_been(
    before: list[tuple[str, int, int]], after: list[tuple[str, int, int]]
) -> None:
    stored = json.loads(json.dumps(counted(before).to_dict()))
    assert counted(after, Steps.from_dict(stored)).to_dict() == counted(before + after).to_dict()


@given(batches=BATCHES)
def test_every_figure_is_what_it_says(batches: list[tuple[str, int, int]]) -> None:
    steps = counted(batches)
    report, named = steps.report(), [each for each in batches if each[0] and each[1]]
    assert [row["name"] for row in report["steps"]] == list(dict.fromkeys(each[0] for each in named))
    assert sum(row["samples"] for row in report["steps"]) == sum(each[1] for each in named)
    for cell in report["cells"]:
        assert cell["on"] <= cell["after"]
        assert 0 <= cell["correct"] <= cell["tested"]
        assert cell["on"] < cell["after"] or cell["tested"] < 2 * END + 2 * 90
    again = sum("accuracy_again" in row for row in report["steps"])
    assert report["tested_again"] == again <= max(report["count"] - 1, 0)
    assert ("forgetting" in report) == (again > 0)


@given(correct=st.lists(st.integers(0, 10), min_size=1, max_size=9), seed=st.integers(0, 2**32 - 1))
def test_inside_a_short_step_the_order_of_batches_does_not_matter(correct: list[int], seed: int) -> None:
    shuffled = np.random.default_rng(seed).permutation(correct).tolist()
    one, other = (counted([("a", 10, right) for right in order] + [("b", 5, 5)]) for order in (correct, shuffled))
    assert one.report() == other.report()
