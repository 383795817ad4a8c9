"""What is told of few: nothing. Heads and records of each task behind the minima of tier `aggregate`."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from everlearn.errors import PreconditionError
from everlearn.heads import head_for
from everlearn.learners import ClosedForm, Masked, TargetLearner
from everlearn.memories import memory_for
from everlearn.metrics.confusion import NO_PREDICTION, OTHER_LABELS
from everlearn.metrics.minimum import Coarse
from everlearn.metrics.prequential import Prequential
from everlearn.metrics.record import Record
from everlearn.metrics.records import record_for
from everlearn.outputs import Output
from everlearn.target_sums import TargetSums
from everlearn.truth import LabelSets, Truth, Values
from everlearn.values import FeatureScale, Task

DIM = 3
SCALE = FeatureScale(step_d=np.full(DIM, 2.0**-6, np.float32))
COMMON, RARE = 40, 5


def features(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, DIM)).astype(np.float32)


def learned(labels: list[str]) -> ClosedForm:
    learner = ClosedForm(memory_for("statistics").create(DIM, ["declared"]), head_for("balanced_ridge"), SCALE)
    learner.learn(features(len(labels)), labels)
    return learner


def test_a_head_shows_the_classes_above_the_minimum_with_the_scores_that_they_had() -> None:
    whole = learned(["a"] * COMMON + ["rare"] * RARE + ["b"] * COMMON).learned()
    shown = Masked(whole, 32)
    head, every = shown.solve().head, whole.solve().head
    assert head.labels == tuple(shown.labels) == ("a", "b")
    assert shown.count_C.tolist() == [COMMON, COMMON]
    assert shown.samples == 2 * COMMON + RARE
    columns = [every.labels.index(label) for label in head.labels]
    assert np.array_equal(head.scores(features(9, 1)), every.scores(features(9, 1))[:, columns])
    assert Masked(whole, 1).solve().head.labels == ("a", "rare", "b")  # one that is only declared has no samples


def test_without_any_class_above_the_minimum_there_is_no_head() -> None:
    with pytest.raises(PreconditionError, match="no class is served below 32 samples") as caught:
        Masked(learned(["a"] * 31).learned(), 32).solve()
    assert caught.value.reason == "BELOW_MINIMUM"


def test_several_labels_a_sample_are_shown_one_by_one_and_outputs_all_or_none() -> None:
    sets = TargetLearner(TargetSums(DIM), head_for("ridge"), SCALE)
    truth = [("red", "round")] * COMMON + [("red", "rare")] * RARE
    sets.integrate(SCALE.quantise(features(len(truth))), LabelSets(tuple(truth)))
    assert Masked(sets.learned(), 32).solve().head.labels == ("red", "round")
    outputs = (Output(name="x", low=0.0, high=1.0), Output(name="y", low=0.0, high=1.0))
    values = TargetLearner(TargetSums(DIM, outputs=outputs), head_for("ridge"), SCALE)
    for count in (31, 1):
        with pytest.raises(PreconditionError):
            Masked(values.learned(), 32).solve()
        values.integrate(SCALE.quantise(features(count)), Values(np.full((count, 2), 0.5, np.float32)))
    assert Masked(values.learned(), 32).solve().head.labels == ("x", "y")


def record_of(task: Task) -> Record:
    """Of 40 samples of `a`, then 5 of `rare`, then 30 of `b` by another client, tested by a head that knows a and b."""
    record, known = record_for(task), ("a", "b")
    for label, count, client in (("a", COMMON, "one"), ("rare", RARE, "one"), ("b", 30, "other")):
        truth: Truth = (label,) * count if task == "classification" else LabelSets(((label,),) * count)
        scores = np.tile(np.array([[0.9, 0.1]], np.float32), (count, 1))
        record.test(truth, client, scores_BC=scores, known=known, features_Bd=features(count), step=f"step-{label}")
    return record


@pytest.mark.parametrize("task", ["classification", "multilabel"])
def test_a_record_names_no_class_step_or_client_of_few_and_keeps_all_totals(task: Task) -> None:
    record = record_of(task)
    coarse = Coarse(record.to_dict(), task, class_samples=20, client_samples=40)
    assert "rare" in str(record.report())  # the control
    report, summary = coarse.report(), coarse.summary()
    assert "rare" not in str(report) + str(summary)
    assert (coarse.tested, coarse.correct) == (record.tested, record.correct) == (75, 40)
    assert (coarse.accuracy, coarse.window_accuracy) == (record.accuracy, record.window_accuracy)
    assert report["total"]["samples"] == summary["window"]["samples"] == 75
    rows = {row["label"]: row for row in report["classes"]}
    assert {"a", "b"} <= set(rows) <= {"a", "b", "\x1f"}
    before = {row["label"]: row for row in record.report()["classes"]}
    assert rows["a"]["samples"] == before["a"]["samples"] == COMMON
    assert rows["\x1f"]["samples"] == RARE
    assert [row["client"] for row in report["clients"]] == ["one"]
    assert report["clients_left_out"] == 1
    assert "steps" not in report
    assert Coarse(record.to_dict(), task, class_samples=20, client_samples=None).report()["clients"] == []


def test_a_class_that_few_samples_of_the_window_show_has_no_figures_of_the_window() -> None:
    record = Prequential(window=40)
    for label, count in (("a", 100), ("b", 100), ("a", 5)):
        record.update([label] * count, ["b"] * count)
    coarse = Coarse(record.to_dict(), "classification", class_samples=20, client_samples=None)
    now = {row["label"]: row.get("windowed_recall") for row in coarse.report()["classes"]}
    assert now == {"a": None, "b": 1.0}
    assert record.report()["window"]["worst_class"] == "a"  # the control
    assert coarse.summary()["window"]["worst_class"] != "a"


def test_values_are_told_as_they_are_and_a_coarse_record_counts_nothing() -> None:
    record = record_for("regression")
    truth = Values(np.full((4, 1), 0.5, np.float32))
    record.test(truth, "one", scores_BC=np.zeros((4, 1), np.float32), known=("x",), features_Bd=features(4))
    coarse = Coarse(record.to_dict(), "regression", class_samples=20, client_samples=None)
    assert coarse.report()["total"] == record.report()["total"]
    with pytest.raises(PreconditionError):
        coarse.test(truth, "one", scores_BC=None, known=(), features_Bd=features(4))
    with pytest.raises(PreconditionError):
        coarse.to_dict()


@settings(max_examples=40, deadline=None)
@given(
    classes=st.sampled_from([2, 9, 150]),
    predicted=st.sampled_from([2, 9, 150]),
    least=st.sampled_from([1, 5, 40, 10_000]),
    batches=st.integers(0, 60),
    seed=st.integers(0, 99),
)
def test_whatever_was_counted_all_totals_stay(
    classes: int, predicted: int, least: int, batches: int, seed: int
) -> None:
    random, record = np.random.default_rng(seed), Prequential(window=300)
    for _ in range(batches):
        labels = [f"class {index}" for index in random.integers(0, classes, 40)]
        guesses = [f"class {index}" for index in random.integers(0, predicted, 40)]
        record.update(labels, guesses if random.random() < 0.9 else [NO_PREDICTION] * 40, client=f"c{seed % 3}")
    told = record.to_dict()
    coarse = Coarse(told, "classification", class_samples=least, client_samples=None)
    assert (coarse.tested, coarse.correct) == (record.tested, record.correct)
    total, now = coarse.report()["total"], coarse.report()["window"]
    plain = record.report()
    assert (total["samples"], total["accuracy"]) == (plain["total"]["samples"], plain["total"]["accuracy"])
    assert (now["samples"], now["accuracy"]) == (plain["window"]["samples"], plain["window"]["accuracy"])
    named = {row["label"]: row["samples"] for row in coarse.report()["classes"] if row["samples"]}
    assert all(samples >= least for label, samples in named.items() if label != OTHER_LABELS)
    assert sum(named.values()) == record.tested


def test_a_record_of_more_confusions_than_it_keeps_is_told_too() -> None:
    random, record = np.random.default_rng(0), Prequential()
    for _ in range(200):
        labels, guesses = ([f"class {index}" for index in random.integers(0, 300, 64)] for _ in range(2))
        record.update(labels, guesses)
    assert any(OTHER_LABELS in cell for cell in record.confusion)
    coarse = Coarse(record.to_dict(), "classification", class_samples=45, client_samples=None)
    assert (coarse.tested, coarse.correct) == (record.tested, record.correct)
    assert coarse.report()["total"]["samples"] == record.tested
