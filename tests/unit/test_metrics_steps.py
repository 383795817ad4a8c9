"""What a stream forgets, counted while its clients name its steps: hand-computed cases, bounds, what is stored."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from everlearn.errors import DataLossError, InputError, InvalidError
from everlearn.metrics import Prequential, Steps
from everlearn.metrics.record import Record
from everlearn.metrics.records import record_for
from everlearn.metrics.steps import END, MAX_STEPS, RETURN
from everlearn.truth import LabelSets, Truth, Values


def counted(*batches: tuple[str, int, int]) -> Steps:
    steps = Steps()
    for step, tested, correct in batches:
        steps.count(step, tested=tested, correct=correct)
    return steps


def test_figures_are_those_computed_by_hand() -> None:
    steps = counted(
        ("a", 10, 9), ("b", 10, 8), ("a", 10, 5), ("c", 10, 10), ("b", 10, 7), ("a", 10, 6), ("b", 10, 8), ("a", 10, 6)
    )
    expected = np.array([[0.9, np.nan, np.nan], [0.5, 0.8, np.nan], [12 / 20, 15 / 20, 1.0]])
    np.testing.assert_array_equal(steps.accuracy(), expected)
    # forgetting: of a max(0.9, 0.5) - 0.6, of b 0.8 - 0.75. Backward transfer: 0.6 - 0.9 and 0.75 - 0.8.
    assert steps.summary() == {
        "count": 3,
        "tested_again": 2,
        "average_accuracy": pytest.approx((0.6 + 0.75 + 1.0) / 3),
        "forgetting": pytest.approx((0.3 + 0.05) / 2),
        "backward_transfer": pytest.approx((-0.3 - 0.05) / 2),
    }


def test_steps_that_did_not_come_again_give_no_figure_and_enter_none() -> None:
    assert Steps().summary() == {"count": 0, "tested_again": 0}
    assert counted(("a", 10, 9)).summary() == {"count": 1, "tested_again": 0}
    apart = counted(("a", 10, 9), ("b", 10, 2), ("c", 10, 8))
    assert apart.summary() == {"count": 3, "tested_again": 0}
    apart.count("a", tested=10, correct=4)
    found = apart.summary()
    assert (found["tested_again"], found["forgetting"]) == (1, pytest.approx(0.5))
    assert found["average_accuracy"] == pytest.approx((0.4 + 0.8) / 2), "b's accuracy now is not known"
    rows = {row["name"]: row for row in apart.report()["steps"]}
    assert (rows["a"]["after"], rows["a"]["accuracy_again"]) == ("c", 0.4)
    assert "accuracy_again" not in rows["b"]
    assert "forgetting" not in rows["c"]


def test_a_step_that_was_tested_after_an_older_one_keeps_that_figure_when_a_newer_begins() -> None:
    steps = counted(("a", 10, 9), ("b", 10, 8), ("a", 10, 5), ("c", 10, 10))
    assert steps.summary()["forgetting"] == pytest.approx(0.4)
    assert steps.report()["steps"][0]["after"] == "b"


def test_the_beginning_of_a_step_does_not_hide_what_was_known_at_its_end() -> None:
    learning = [("a", 50, correct) for correct in (0, 10, 30, 50, 50, 50, 50)]
    assert counted(*learning).accuracy()[0, 0] == 1.0
    steps = counted(*learning, ("b", 50, 50), ("a", 50, 50))
    assert steps.summary()["forgetting"] == 0.0
    assert steps.report()["steps"][0]["samples"] == 400
    ((after, on, tested, _),) = counted(*learning).to_dict()["cells"]
    assert (after, on) == (0, 0)
    assert END <= tested <= 2 * END


def test_what_is_learned_again_does_not_hide_what_was_forgotten() -> None:
    back = [("a", 32, correct) for correct in (8, 16, 32, 32, 32)]
    steps = counted(("a", 100, 100), ("b", 100, 100), *back)
    assert steps.accuracy()[1, 0] == 24 / RETURN
    # ... until it comes again; batches of no step come in between too.
    steps.count("b", tested=10, correct=10)
    steps.count("a", tested=36, correct=36)
    steps.count("", tested=10, correct=0)
    steps.count("a", tested=100, correct=100)
    assert steps.accuracy()[1, 0] == (24 + 36 + 100) / (RETURN + 136)


def test_only_batches_with_samples_and_a_name_begin_a_step() -> None:
    steps = counted(("a", 0, 0), ("", 10, 5))
    assert (len(steps), steps.samples, steps.report()["cells"]) == (0, 0, [])


def test_one_step_too_many_is_refused_and_counts_nothing() -> None:
    steps = counted(*((f"s{number}", 1, 1) for number in range(MAX_STEPS)))
    before = steps.to_dict()
    refusal = steps.refusal("one-more")
    assert refusal is not None
    assert (refusal.field, str(MAX_STEPS) in refusal.message) == ("batch.step", True)
    assert steps.refusal("s0") is steps.refusal("") is None
    with pytest.raises(InputError):
        steps.count("one-more", tested=1, correct=1)
    for tested, correct in ((1, 2), (3, -1)):
        with pytest.raises(InvalidError):
            steps.count("s0", tested=tested, correct=correct)
    assert steps.to_dict() == before


def test_the_record_of_all_steps_stays_small() -> None:
    steps = Steps()
    for newest in range(MAX_STEPS):
        for step in range(newest, -1, -1):
            steps.count(
                f"a-season-with-a-name-of-sixty-three-letters-and-digits-and-dash-{step}"[-63:], tested=1000, correct=7
            )
    assert len(json.dumps(steps.to_dict())) < 64_000
    assert len(steps.report()["cells"]) == MAX_STEPS * (MAX_STEPS + 1) // 2


@pytest.mark.parametrize(
    "wrong",
    [
        {"version": 2},
        {"cells": [[0, 0, 1]]},
        {"cells": [[0, 0, 10, 11]]},
        {"cells": [[0, 1, 10, 1]]},
        {"cells": []},
        {"names": ["a", "a"]},
        {"samples": [9, 10]},
        {"panes": [[0, 0], [1, 1]]},
        {"last": 2},
        {"in_a_row": -1},
    ],
)
def test_a_record_that_cannot_be_is_not_taken_up(wrong: dict[str, Any]) -> None:
    good = counted(("a", 10, 9), ("b", 10, 8)).to_dict()
    assert Steps.from_dict(json.loads(json.dumps(good))).to_dict() == good
    with pytest.raises(DataLossError):
        Steps.from_dict({**good, **wrong})


def record_of(task: Any, steps: tuple[str, ...]) -> Record:
    record = record_for(task)
    truths: dict[str, Truth] = {
        "classification": ["x", "y"],
        "multilabel": LabelSets((("x",), ("y",))),
        "regression": Values(np.ones((2, 2))),
    }
    scores_BC = np.array([[1.0, 0.0], [0.9, 0.1]], np.float32)
    for step in steps:
        features_Bd = np.ones((2, 3), np.float32)
        record.test(truths[task], "c", scores_BC=scores_BC, known=("x", "y"), features_Bd=features_Bd, step=step)
    return record


@pytest.mark.parametrize("task", ["classification", "multilabel"])
def test_the_record_of_a_model_counts_tells_and_stores_steps(task: Any) -> None:
    record = record_of(task, ("a", "b", "a"))
    assert record.steps.names == ("a", "b")
    assert record.steps.accuracy()[1, 0] == 0.5
    assert record.summary()["steps"] == {**record.steps.summary()}
    assert record.report()["steps"]["steps"][0]["name"] == "a"
    stored = json.loads(json.dumps(record.to_dict()))
    again = record_for(task, stored)
    assert again.to_dict() == record.to_dict()
    assert again.report() == record.report()
    with pytest.raises(DataLossError):
        record_for(task, {**stored, "steps": {**stored["steps"], "samples": [40, 40]}})


@pytest.mark.parametrize("task", ["classification", "multilabel", "regression"])
def test_a_record_without_steps_is_as_releases_before_wrote_it(task: Any) -> None:
    record = record_of(task, ("",))
    assert "steps" not in record.to_dict()
    assert "steps" not in record.summary()
    assert "steps" not in record.report()
    assert len(record_for(task, record.to_dict()).steps) == 0


def test_of_two_records_one_may_name_steps() -> None:
    named, plain = record_of("classification", ("a", "b")), record_of("classification", ("",))
    assert isinstance(named, Prequential)
    assert isinstance(plain, Prequential)
    plain.merge(named)
    assert plain.steps.to_dict() == named.steps.to_dict()
    with pytest.raises(InvalidError):
        plain.merge(named)
