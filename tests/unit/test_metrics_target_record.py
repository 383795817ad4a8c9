"""Figures of several labels and of values: scikit-learn's, kept as counts over all and over a window."""

from __future__ import annotations

import json

import numpy as np
import numpy.typing as npt
import pytest
from sklearn.metrics import (
    accuracy_score,
    log_loss,
    mean_absolute_error,
    precision_recall_fscore_support,
    r2_score,
    root_mean_squared_error,
)

from everlearn.errors import DataLossError, InputError
from everlearn.metrics.label_sets import LabelSetCounts
from everlearn.metrics.prequential import MAX_CLIENTS, Prequential
from everlearn.metrics.record import Record
from everlearn.metrics.records import record_for
from everlearn.metrics.target_record import TargetRecord
from everlearn.metrics.value_errors import ValueErrors
from everlearn.truth import LabelSets, Truth, Values

KNOWN = tuple(f"label {column}" for column in range(6))
Rows = npt.NDArray[np.bool_]


def drawn(samples: int, seed: int = 0) -> tuple[Rows, npt.NDArray[np.float32]]:
    """Which labels samples have, and probabilities that know something of it."""
    rng = np.random.default_rng(seed)
    has = rng.random((samples, 6)) < np.linspace(0.05, 0.6, 6)
    return has, np.clip(0.3 + 0.4 * has + rng.normal(0, 0.25, has.shape), 0.01, 0.99).astype(np.float32)


def sets_of(has: Rows) -> LabelSets:
    return LabelSets(tuple(tuple(KNOWN[column] for column in np.flatnonzero(row)) for row in has))


def features(samples: int, seed: int = 0) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, 1, (samples, 8)).astype(np.float32)


def count(record: Record, truth: Truth, scores: npt.NDArray[np.float32] | None, client: str = "a") -> None:
    known = KNOWN[: scores.shape[1]] if scores is not None else ()
    record.test(truth, client, scores_BC=scores, known=known, features_Bd=features(len(truth)))


def streamed(has: Rows, scores: npt.NDArray[np.float32], *, batch: int = 32, window: int = 1000) -> Record:
    record = TargetRecord(LabelSetCounts, window=window)
    for start in range(0, len(has), batch):
        count(record, sets_of(has[start : start + batch]), scores[start : start + batch])
    return record


def test_figures_of_label_sets_are_scikit_learns() -> None:
    has, scores = drawn(700)
    record = streamed(has, scores)
    said, told = scores >= 0.5, record.summary()["total"]
    assert told["samples"] == record.tested == 700
    assert told["accuracy"] == record.accuracy == accuracy_score(has, said)
    for average in ("micro", "macro"):
        precision, recall, f1, _ = precision_recall_fscore_support(has, said, average=average, zero_division=0)
        assert told[f"{average}_precision"] == pytest.approx(precision)
        assert told[f"{average}_f1"] == pytest.approx(f1)
        assert told["micro_recall" if average == "micro" else "balanced_accuracy"] == pytest.approx(recall)
    _, recall, _, _ = precision_recall_fscore_support(has, said, average=None, zero_division=0)
    assert told["worst_class"] == KNOWN[int(recall.argmin())]
    assert told["worst_recall"] == pytest.approx(recall.min())
    assert told["log_loss"] == pytest.approx(log_loss(has.ravel(), scores.ravel().astype(np.float64)), rel=1e-6)


def test_the_report_has_each_label_and_reliability_and_the_curve() -> None:
    has, scores = drawn(700)
    told = streamed(has, scores).report()
    assert {row["label"] for row in told["classes"]} == set(KNOWN)
    assert [row["recall"] for row in told["classes"]] == sorted(row["recall"] for row in told["classes"])
    assert sum(each["samples"] for each in told["reliability"]) == 700 * 6
    assert told["curve"][-1]["samples"] == 700
    assert told["curve"][-1]["accuracy"] == told["total"]["accuracy"]
    assert told["clients"] == [{"client": "a", "samples": 700, "accuracy": told["total"]["accuracy"]}]
    json.dumps(told)


def test_the_window_forgets_and_the_total_does_not() -> None:
    has, scores = drawn(2000)
    scores[1000:] = 1 - scores[1000:]  # it gets everything wrong from here on
    record = streamed(has, scores, window=400)
    assert record.window_accuracy == pytest.approx(accuracy_score(has[-500:], scores[-500:] >= 0.5), abs=0.02)
    assert record.accuracy == accuracy_score(has, scores >= 0.5)
    assert 400 <= record.summary()["window"]["samples"] <= 400 + 50 + 32


def test_a_label_that_the_head_does_not_know_is_missed_and_without_a_head_nothing_is_right() -> None:
    record = TargetRecord(LabelSetCounts)
    count(record, LabelSets((("label 0", "new"), ())), np.array([[0.9], [0.1]], np.float32))
    assert (record.tested, record.correct) == (2, 1)
    rows = {row["label"]: row for row in record.report()["classes"]}
    assert (rows["new"]["samples"], rows["new"]["hits"]) == (1, 0)
    count(record, LabelSets(((), ("label 0",))), None)
    assert (record.tested, record.correct) == (4, 1)


def test_figures_of_values_are_scikit_learns() -> None:
    rng = np.random.default_rng(1)
    true = np.stack([1e6 + rng.normal(0, 1, 500), rng.uniform(-5, 5, 500)], axis=1)
    predicted = (true - [1e6, 0] + rng.normal(0, 0.5, true.shape) + [1e6, 0]).astype(np.float32)
    record = TargetRecord(ValueErrors)
    for start in range(0, 500, 37):
        block = slice(start, start + 37)
        count(record, Values(true[block]), predicted[block])
    told = record.summary()["total"]
    for output in range(2):
        mine, y, p = told["outputs"][output], true[:, output], predicted[:, output].astype(np.float64)
        assert mine["name"] == KNOWN[output]
        assert mine["mae"] == pytest.approx(mean_absolute_error(y, p))
        assert mine["rmse"] == pytest.approx(root_mean_squared_error(y, p))
        assert mine["r2"] == pytest.approx(r2_score(y, p))
    assert told["r2"] == record.accuracy == pytest.approx(r2_score(true, predicted.astype(np.float64)))
    assert (record.tested, record.correct) == (500, 0)


def test_values_without_a_head_are_seen_and_not_judged_and_worse_than_the_mean_is_no_accuracy() -> None:
    record = TargetRecord(ValueErrors)
    count(record, Values(np.ones((5, 1))), None)
    assert record.tested == 5
    assert record.summary()["total"] == {"samples": 0, "accuracy": 0.0, "outputs": []}
    count(record, Values(np.array([[0.0], [1.0]])), np.array([[1.0], [0.0]], np.float32))
    assert record.summary()["total"]["r2"] == -3
    assert record.accuracy == record.window_accuracy == 0


@pytest.mark.parametrize("task", ["multilabel", "regression"])
def test_a_record_survives_saving_and_goes_on(task: str) -> None:
    has, scores = drawn(300)
    truth = sets_of(has) if task == "multilabel" else Values(has.astype(np.float64))
    record = record_for(task)  # type: ignore[arg-type]  # one of the tasks
    count(record, truth, scores)
    data = json.loads(json.dumps(record.to_dict()))
    again = record_for(task, data)  # type: ignore[arg-type]
    assert again.to_dict() == record.to_dict()
    count(again, truth, scores, client="b")
    assert again.tested == 600
    for spoilt in ({**data, "version": 9}, {**data, "tested": 1}, {**data, "panes": []}, {}, {**data, "clients": {}}):
        with pytest.raises(DataLossError):
            record_for(task, spoilt)  # type: ignore[arg-type]


def test_a_record_of_another_task_is_not_read() -> None:
    with pytest.raises(DataLossError):
        record_for("multilabel", Prequential().to_dict() | {"tested": 0})
    with pytest.raises(DataLossError):
        record_for("classification", TargetRecord(LabelSetCounts).to_dict())


def test_truth_of_another_kind_is_refused_and_not_counted() -> None:
    labels, sets, values = ["a"], LabelSets((("a",),)), Values(np.ones((1, 1)))
    scores = np.ones((1, 1), np.float32)
    for record, wrong in (
        (record_for("classification"), (sets, values)),
        (record_for("multilabel"), (labels, values)),
        (record_for("regression"), (labels, sets)),
    ):
        for truth in wrong:
            with pytest.raises(InputError):
                count(record, truth, scores)  # type: ignore[arg-type]  # a list of texts is a truth
        assert record.tested == 0


def test_many_clients_are_counted_together() -> None:
    record = TargetRecord(LabelSetCounts)
    for number in range(MAX_CLIENTS + 5):
        count(record, LabelSets(((),)), np.zeros((1, 6), np.float32), client=f"c{number}")
    told = record.report()
    assert told["clients_left_out"] == MAX_CLIENTS + 1 - 100
    assert told["clients"][0] == {"client": "", "samples": 5, "accuracy": 1.0}
