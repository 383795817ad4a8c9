"""Each figure against scikit-learn, SciPy or a case computed by hand; the record against its own promises."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy.optimize import minimize_scalar
from scipy.spatial.distance import jensenshannon
from sklearn.metrics import balanced_accuracy_score, precision_recall_fscore_support, roc_auc_score

from everlearn.errors import DataLossError, InputError
from everlearn.metrics import Prequential
from everlearn.metrics import confusion as confusion_module
from everlearn.metrics.auc import ScoreHistograms
from everlearn.metrics.calibration import Reliability
from everlearn.metrics.confusion import MISSED, OTHER_LABELS, Confusion
from everlearn.metrics.curve import MAX_POINTS, LearningCurve
from everlearn.metrics.drift import FeatureMoments, label_distance
from everlearn.metrics.probabilities import announce
from everlearn.metrics.temperature import LossByTemperature
from everlearn.metrics.window import Window

Scores = npt.NDArray[np.float32]
LABELS = tuple("abcde")


def stream(samples: int, seed: int, signal: float = 1.5) -> tuple[Scores, npt.NDArray[np.intp]]:
    rng = np.random.default_rng(seed)
    true_B = rng.integers(0, len(LABELS), samples)
    scores_BC = rng.normal(size=(samples, len(LABELS))) + signal * np.eye(len(LABELS))[true_B]
    return scores_BC.astype(np.float32), true_B


def taught(made: Prequential, samples: int, seed: int, *, signal: float = 1.5, shift: float = 0.0) -> Prequential:
    scores_BC, true_B = stream(samples, seed, signal)
    features_Bd = np.random.default_rng(seed).normal(shift, 1, (samples, 16)).astype(np.float32)
    for start in range(0, samples, 32):
        rows = slice(start, start + 32)
        labels = [LABELS[column] for column in true_B[rows]]
        client = f"site-{start // 32 % 2}"
        made.update(labels, None, client, scores_BC=scores_BC[rows], known=LABELS, features_Bd=features_Bd[rows])
    return made


def test_per_class_and_macro_figures_are_those_of_scikit_learn() -> None:
    scores_BC, true_B = stream(500, 0)
    true, guess = [LABELS[t] for t in true_B], [LABELS[g] for g in scores_BC.argmax(axis=1)]
    made = Confusion()
    for pair in zip(true, guess, strict=True):
        made.add({pair: 1})
    precision, recall, f1, support = precision_recall_fscore_support(true, guess, labels=LABELS, zero_division=0)
    found = made.classes()
    assert [each.precision for each in found] == pytest.approx(precision)
    assert [each.recall for each in found] == pytest.approx(recall)
    assert [each.f1 for each in found] == pytest.approx(f1)
    assert [each.samples for each in found] == list(support)
    macro = made.macro()
    assert (macro.precision, macro.f1) == (pytest.approx(precision.mean()), pytest.approx(f1.mean()))
    assert macro.recall == pytest.approx(balanced_accuracy_score(true, guess))
    assert macro.worst is not None
    assert macro.worst.label == LABELS[recall.argmin()]


def test_precision_stays_exact_when_rare_confusions_are_folded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confusion_module, "MAX_PAIRS", 4)
    monkeypatch.setattr(confusion_module, "_FOLD_TO", 3)
    made = Confusion()
    for index in range(6):
        made.add({(f"t{index}", "x"): index + 1})
    made.add({("x", "x"): 9})
    figures = {each.label: each for each in made.classes()}["x"]
    assert (figures.predicted, figures.precision) == (30, 0.3)
    assert made.cells["t0", OTHER_LABELS] == 1
    assert made.unattributed == 0


def test_classes_beyond_the_cap_are_one_class(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confusion_module, "MAX_CLASSES", 2)
    made = Confusion()
    made.add({("a", "a"): 2, ("b", "a"): 1, ("c", "c"): 3, ("d", "c"): 4, ("e", "a"): 5, ("a", "f"): 6})
    found = {each.label: (each.samples, each.predicted, each.hits) for each in made.classes()}
    assert found == {"a": (8, 8, 2), "b": (1, 0, 0), OTHER_LABELS: (12, 13, 3)}
    assert made.cells[OTHER_LABELS, MISSED] == 4
    again = Confusion()
    again.add(made.cells)
    again.take_predicted(made.predicted.items(), made.unattributed)
    assert again.cells == made.cells
    assert again.classes() == made.classes()


def test_ece_of_a_case_computed_by_hand() -> None:
    bins = Reliability()
    bins.add(np.array([0.95, 0.95, 0.5, 0.5]), np.array([True, False, True, True]))
    assert bins.ece == pytest.approx(0.5 * abs(0.5 - 0.95) + 0.5 * abs(1 - 0.5))
    assert bins.overconfidence == pytest.approx(0.725 - 0.75)
    edge = Reliability()
    edge.add(np.array([1 / 15, 1.0]), np.array([True, True]))  # bins are closed above
    assert [samples for samples, _, _ in edge.bins()] == [1, *[0] * 13, 1]


@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0])
def test_the_temperature_is_that_of_a_direct_fit(scale: float) -> None:
    scores_BC, true_B = stream(2000, 1)
    scores_BC = scores_BC * np.float32(scale)

    def loss(log_temperature: float) -> float:
        scaled_BC = scores_BC.astype(np.float64) / np.exp(log_temperature)
        top_B1 = scaled_BC.max(axis=1, keepdims=True)
        total_B = np.log(np.exp(scaled_BC - top_B1).sum(axis=1)) + top_B1[:, 0]
        return float((total_B - scaled_BC[np.arange(len(true_B)), true_B]).mean())

    losses = LossByTemperature()
    losses.add(scores_BC, true_B)
    direct = float(np.exp(minimize_scalar(loss, bounds=(-8, 8), method="bounded").x))
    found = losses.fit()
    assert found == pytest.approx(direct, rel=0.01)


def test_the_temperature_does_not_depend_on_order_and_adds_up() -> None:
    scores_BC, true_B = stream(600, 2)
    once, parts = LossByTemperature(), LossByTemperature()
    once.add(scores_BC, true_B)
    order = np.random.default_rng(0).permutation(600)
    for rows in np.array_split(order, 7):
        part = LossByTemperature()
        part.add(scores_BC[rows], true_B[rows])
        parts.merge(part)
    assert parts.fit() == pytest.approx(once.fit(), rel=1e-9)


def test_the_temperature_is_unknown_at_first_and_at_its_bound_where_nothing_is_ever_wrong() -> None:
    losses = LossByTemperature()
    losses.add(np.array([[1, 0]], np.float32).repeat(99, axis=0), np.zeros(99, np.intp))
    assert losses.fit() is None
    losses.add(np.array([[1, 0]], np.float32), np.zeros(1, np.intp))
    lowest = losses.fit()
    assert lowest is not None
    assert lowest < 0.01


def test_auc_is_that_of_scikit_learn_within_its_resolution() -> None:
    scores_BC, true_B = stream(800, 3, signal=1.0)
    told = announce(scores_BC, 1.0)
    made = ScoreHistograms()
    made.add(told.log_odds_BC, true_B, LABELS)
    exact = {c: roc_auc_score(true_B == c, told.log_odds_BC[:, c]) for c in range(len(LABELS))}
    for c, label in enumerate(LABELS):
        assert made.by_class()[label] == pytest.approx(exact[c], abs=0.01)
    assert made.macro() == pytest.approx(np.mean(list(exact.values())), abs=0.005)
    own_BC = np.eye(len(LABELS))[true_B]
    pooled, within = made.pooled(), made.resolution
    assert pooled is not None
    assert abs(pooled - roc_auc_score(own_BC.ravel(), told.log_odds_BC.ravel())) <= within < 0.05


def test_classes_beyond_the_cap_share_a_histogram_and_the_pooled_auc_keeps_them() -> None:
    scores_BC, true_B = stream(400, 4)
    told, wide, narrow = announce(scores_BC, 1.0), ScoreHistograms(), ScoreHistograms(max_classes=2)
    wide.add(told.log_odds_BC, true_B, LABELS)
    narrow.add(told.log_odds_BC, true_B, LABELS)
    assert set(narrow.by_class()) == {"a", "b"}
    assert narrow.pooled() == wide.pooled()
    assert narrow.by_class()["a"] == wide.by_class()["a"]
    loaded = ScoreHistograms.from_dict(json.loads(json.dumps(narrow.to_dict())), 2)
    assert loaded.to_dict() == narrow.to_dict()


def test_label_distance_is_scipys_and_unknown_for_few_samples() -> None:
    one, other = {"a": 30, "b": 70}, {"b": 20, "c": 40}
    assert label_distance(one, other) == pytest.approx(jensenshannon([30, 70, 0], [0, 20, 40], base=2))
    assert label_distance({"a": 29}, other) is None


def test_a_shift_of_features_is_seen_and_none_is_not() -> None:
    rng = np.random.default_rng(5)
    before, same, moved = FeatureMoments(), FeatureMoments(), FeatureMoments()
    before.add(rng.normal(0, 1, (3000, 64)).astype(np.float32))
    same.add(rng.normal(0, 1, (1000, 64)).astype(np.float32))
    moved.add(rng.normal(1, 1, (1000, 64)).astype(np.float32))
    still, shifted = same.shift_from(before), moved.shift_from(before)
    assert still is not None
    assert shifted is not None
    assert max(still) < 0.2
    assert shifted[0] > 2
    assert FeatureMoments().shift_from(before) is None
    both = FeatureMoments()
    both.merge(before)
    both.merge(moved)
    assert moved.shift_from(both.without(moved)) == pytest.approx(shifted)


def test_the_curve_stays_bounded_and_its_counts_stay_exact() -> None:
    curve = LearningCurve()
    for batch in range(1, 20_001):
        curve.extend(32 * batch, 16 * batch)
    assert MAX_POINTS / 2 <= len(curve.points) <= MAX_POINTS
    rows = curve.rows(32 * 20_000 + 8, 16 * 20_000 + 8)
    assert {round(since, 9) for _, _, since in rows[:-1]} == {0.5}
    assert rows[-1][0] == 32 * 20_000 + 8
    assert rows[-1][2] > 0.5
    assert LearningCurve.from_dict(json.loads(json.dumps(curve.to_dict()))).to_dict() == curve.to_dict()


def test_the_window_covers_its_size_and_little_more() -> None:
    window = Window(100)
    for _ in range(200):
        window.present.cells["c", "a", "a"] += 7
        window.take(7)
        window.turn()
    assert 100 <= window.samples <= 100 + 100 // 8 + 2 * 7


def test_the_record_survives_json_and_goes_on_alike() -> None:
    made = taught(Prequential(), 1500, 6)
    loaded = Prequential.from_dict(json.loads(json.dumps(made.to_dict())))
    assert loaded.report() == made.report()
    taught(made, 300, 7)
    taught(loaded, 300, 7)
    assert loaded.to_dict() == made.to_dict()


def test_a_record_of_an_earlier_release_loads_and_its_report_begins() -> None:
    old = taught(Prequential(), 300, 8).to_dict()
    del old["report"]
    made = Prequential.from_dict(json.loads(json.dumps(old)))
    report = made.report()
    assert (report["total"]["samples"], report["window"]["samples"]) == (300, 0)
    assert "ece" not in report["total"]
    taught(made, 300, 9)
    assert made.report()["total"]["announced"] > 0
    assert Prequential.from_dict(made.to_dict()).to_dict() == made.to_dict()


@pytest.mark.parametrize(
    "change",
    [{"version": 2}, {"panes": []}, {"curve": {"spacing": 16, "points": [[9, 1], [4, 1]]}}, {"moments": None}],
)
def test_a_report_that_cannot_be_is_data_loss(change: dict[str, Any]) -> None:
    data = taught(Prequential(), 200, 10).to_dict()
    data["report"] = {**data["report"], **change}
    with pytest.raises(DataLossError):
        Prequential.from_dict(data)


def test_the_fitted_probabilities_are_calibrated_whatever_the_scale_of_scores() -> None:
    made = Prequential()
    scores_BC, true_B = stream(4000, 11)
    for start in range(0, 4000, 32):
        rows = slice(start, start + 32)
        made.update([LABELS[c] for c in true_B[rows]], None, scores_BC=scores_BC[rows] * np.float32(0.05), known=LABELS)
    total = made.report()["total"]
    assert total["ece"] < 0.04
    # The control: the same scores taken as logits promise far too little.
    raw = Reliability()
    raw.add(announce(scores_BC * np.float32(0.05), 1.0).confidence_B, scores_BC.argmax(axis=1) == true_B)
    assert raw.ece > 0.3


def test_the_report_sees_a_client_that_differs_and_a_shift_of_what_comes_in() -> None:
    made = taught(Prequential(window=400), 1200, 12)
    assert made.report()["drift"]["norm_shift"] < 0.3
    taught(made, 480, 13, shift=3.0)
    for _ in range(4):
        made.update(["a"] * 16, ["a"] * 16, "one-class")
    report = made.report()
    assert report["drift"]["norm_shift"] > 1
    assert report["clients"][0]["client"] == "one-class"
    assert report["clients"][0]["label_distance"] > max(row["label_distance"] for row in report["clients"][1:])


def test_rows_that_are_not_finite_or_absurd_spoil_no_sum() -> None:
    made, clean = taught(Prequential(), 320, 14), taught(Prequential(), 320, 14)
    bad_BC = np.array([[np.nan] * 5, [3e38, -3e38, 0, 0, 0]], np.float32)
    bad_Bd = np.array([[np.inf] * 16, [3e38] * 16], np.float32)
    made.update(["a", "b"], ["a", "b"], scores_BC=bad_BC, known=LABELS, features_Bd=bad_Bd)
    report = made.report()
    assert json.dumps(report, allow_nan=False)
    assert json.dumps(made.to_dict(), allow_nan=False)
    assert report["total"]["announced"] == clean.report()["total"]["announced"] + 1


def test_shapes_that_disagree_are_refused_and_nothing_is_counted() -> None:
    made = Prequential()
    with pytest.raises(InputError):
        made.update(["a"], None, scores_BC=np.zeros((2, 5), np.float32), known=LABELS)
    with pytest.raises(InputError):
        made.update(["a"], None, scores_BC=np.zeros((1, 4), np.float32), known=LABELS)
    with pytest.raises(InputError):
        made.update(["a"], None, features_Bd=np.zeros((2, 4), np.float32))
    assert (made.tested, made.report()["total"]["samples"]) == (0, 0)


def test_merging_records_adds_the_report() -> None:
    left, right = taught(Prequential(), 400, 15), taught(Prequential(), 400, 16)
    left.merge(right)
    report = left.report()
    assert report["total"]["samples"] == sum(row["samples"] for row in report["classes"]) == 800
    before = right.to_dict()
    taught(left, 64, 17)
    assert right.to_dict() == before
