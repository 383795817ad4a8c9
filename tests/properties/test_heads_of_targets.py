"""Heads of several targets a sample: equal to scikit-learn's ridge on all samples, with probabilities that hold."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
from sklearn.datasets import load_diabetes, load_digits, make_multilabel_classification
from sklearn.linear_model import LogisticRegression, Ridge, RidgeCV
from sklearn.metrics import f1_score, log_loss, r2_score, recall_score
from sklearn.multiclass import OneVsRestClassifier

from everlearn.errors import InvalidError, PreconditionError, SpecError
from everlearn.heads import head_for
from everlearn.outputs import Output, quantise_values
from everlearn.target_sums import TargetSums
from everlearn.values import FeatureScale, LinearHead

Float = npt.NDArray[np.float64]


class Data:
    """Real or drawn samples, standardised and rounded to a grid, in one order."""

    def __init__(self, values: Float, targets: npt.NDArray[np.number], seed: int = 0) -> None:
        order = np.random.default_rng(seed).permutation(len(values))
        spread = values.std(axis=0)
        standard = ((values - values.mean(axis=0)) / np.where(spread > 0, spread, 1))[order].astype(np.float32)
        self.scale = FeatureScale(step_d=np.full(values.shape[1], np.abs(standard).max() / 2000, np.float32))
        self.quantised = self.scale.quantise(standard)
        self.features = self.scale.restore(self.quantised)
        self.targets = targets[order]


def digits() -> Data:
    """Six questions about each real digit: is it even, large, prime, round, a one, a multiple of three?"""
    found = load_digits()
    digit = found.target
    asked = [digit % 2 == 0, digit >= 5, np.isin(digit, [2, 3, 5, 7]), np.isin(digit, [0, 6, 8, 9]), digit == 1]
    return Data(found.data, np.stack([*asked, digit % 3 == 0], axis=1).astype(np.int64))


def topics() -> Data:
    """Bags of words with a varying number of topics, some rare."""
    values, targets = make_multilabel_classification(2000, 40, n_classes=12, n_labels=3, random_state=1)
    return Data(values, targets[:, targets.mean(axis=0) > 0.05])


def diabetes() -> tuple[Data, tuple[Output, ...]]:
    """Two real outputs in different units: progression of the disease, and blood pressure."""
    found = load_diabetes(scaled=False)
    pressure = found.feature_names.index("bp")
    targets = np.stack([found.target, found.data[:, pressure]], axis=1)
    outputs = (Output(name="progression", low=0, high=400), Output(name="pressure", low=50, high=150))
    return Data(np.delete(found.data, pressure, axis=1), targets), outputs


def names(row: npt.NDArray[np.number]) -> list[str]:
    return [f"t{column:02}" for column in np.flatnonzero(row)]


def learned(data: Data, rows: Sequence[int] | npt.NDArray[np.int64], *, declared: int = 0) -> TargetSums:
    sums = TargetSums(data.features.shape[1], [f"t{column:02}" for column in range(declared)])
    sums.add_sets(data.quantised[rows], [names(data.targets[row]) for row in rows])
    return sums


def solved(data: Data, count: int, kind: str = "ridge", hint: float | None = None) -> LinearHead:
    sums = learned(data, np.arange(count), declared=data.targets.shape[1])
    return head_for(kind).solve_targets(sums, data.scale, hint=hint)


def calibration_error(probability: npt.NDArray[np.float32], truth: npt.NDArray[np.number], bins: int = 15) -> float:
    """ECE over all pairs of sample and label."""
    p, y = probability.ravel(), truth.ravel()
    place = np.minimum((p * bins).astype(int), bins - 1)
    return sum(abs(p[place == b].mean() - y[place == b].mean()) * (place == b).mean() for b in set(place.tolist()))


def penalty(data: Data, rows: int, alpha: float) -> float:
    """scikit-learn's penalty, of sums and not of means."""
    centred = data.features[:rows].astype(np.float64) - data.features[:rows].mean(axis=0, dtype=np.float64)
    return alpha * float((centred**2).sum()) / centred.shape[1]


def test_values_are_those_of_ridge_on_all_samples() -> None:
    data, outputs = diabetes()
    sums = TargetSums(data.features.shape[1], outputs=outputs)
    for start in range(0, 300, 37):
        rows = slice(start, min(start + 37, 300))
        sums.add_values(data.quantised[rows], data.targets[rows])
    head = head_for("ridge", 0.1).solve_targets(sums, data.scale)
    grid = quantise_values(data.targets[:300], outputs) * [o.step for o in outputs] + [o.centre for o in outputs]
    peer = Ridge(alpha=penalty(data, 300, 0.1)).fit(data.features[:300].astype(np.float64), grid)
    assert head.labels == ("progression", "pressure")
    assert head.task == "regression"
    np.testing.assert_allclose(head.weight_dC, peer.coef_.T, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(head.scores(data.features[300:]), peer.predict(data.features[300:]), rtol=1e-4)


def test_the_penalty_found_by_gcv_predicts_new_values_as_well_as_scikit_learns() -> None:
    data, outputs = diabetes()
    for count in (40, 300):
        sums = TargetSums(data.features.shape[1], outputs=outputs)
        sums.add_values(data.quantised[:count], data.targets[:count])
        head = head_for("ridge").solve_targets(sums, data.scale)
        peer = RidgeCV(np.logspace(-2, 4, 25), alpha_per_target=True).fit(data.features[:count], data.targets[:count])
        ours = r2_score(data.targets[300:], head.scores(data.features[300:]))
        theirs = r2_score(data.targets[300:], peer.predict(data.features[300:]))
        assert ours >= theirs - 0.02, count


def test_each_labels_direction_is_that_of_one_ridge_against_the_rest() -> None:
    data = digits()
    sums = learned(data, np.arange(900), declared=6)
    peer = Ridge(alpha=penalty(data, 900, 0.03)).fit(data.features[:900].astype(np.float64), data.targets[:900])
    for kind in ("ridge", "balanced_ridge"):
        head = head_for(kind, 0.03).solve_targets(sums, data.scale)
        for ours, theirs in zip(head.weight_dC.T, peer.coef_, strict=True):
            assert ours @ theirs / np.linalg.norm(ours) / np.linalg.norm(theirs) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(("make", "count", "most"), [(digits, 100, 0.06), (digits, 900, 0.03), (topics, 150, 0.045)])
def test_probabilities_hold_on_new_samples_as_well_as_those_of_logistic_regression(
    make: object, count: int, most: float
) -> None:
    data: Data = make()  # type: ignore[operator]  # a function of this file
    head = solved(data, count)
    ours, truth = head.scores(data.features[900:]), data.targets[900:]
    peer = OneVsRestClassifier(LogisticRegression(max_iter=1000)).fit(data.features[:count], data.targets[:count])
    theirs = peer.predict_proba(data.features[900:])
    assert calibration_error(ours, truth) <= most
    assert log_loss(truth.ravel(), ours.ravel()) <= 1.05 * log_loss(truth.ravel(), theirs.ravel())
    if make is digits:
        assert f1_score(truth, ours >= 0.5, average="micro") >= f1_score(truth, theirs >= 0.5, average="micro") - 0.01


def test_control_without_the_correction_for_leverage_few_samples_flatter() -> None:
    data = topics()
    centred = data.features[:150].astype(np.float64)
    fitted = Ridge(alpha=penalty(data, 150, 1e-3)).fit(centred, data.targets[:150])
    head = head_for("ridge", 1e-3).solve_targets(
        learned(data, np.arange(150), declared=data.targets.shape[1]), data.scale
    )
    naive = np.empty((1100, data.targets.shape[1]))
    for column in range(data.targets.shape[1]):
        value, new = fitted.predict(centred)[:, column], fitted.predict(data.features[900:])[:, column]
        has = data.targets[:150, column] == 1
        high, low, share = value[has].mean(), value[~has].mean(), has.mean()
        within = share * value[has].var() + (1 - share) * value[~has].var()
        logit = (new - (high + low) / 2) * (high - low) / within + np.log(share / (1 - share))
        naive[:, column] = 1 / (1 + np.exp(-logit))
    ours = head.scores(data.features[900:])
    assert calibration_error(ours, data.targets[900:]) <= 0.6 * calibration_error(
        naive.astype(np.float32), data.targets[900:]
    )


def test_balance_finds_more_of_the_rare_labels() -> None:
    data = topics()
    rare = data.targets[:1000].mean(axis=0) < 0.2
    assert rare.any()
    found = {
        kind: recall_score(
            data.targets[1000:][:, rare],
            solved(data, 1000, kind).scores(data.features[1000:])[:, rare] >= 0.5,
            average="macro",
        )
        for kind in ("ridge", "balanced_ridge")
    }
    assert found["balanced_ridge"] >= found["ridge"] + 0.2


def test_a_quick_solve_says_nearly_what_the_search_said() -> None:
    data = digits()
    exact = solved(data, 600)
    quick = solved(data, 600, hint=exact.regularization)
    assert np.abs(exact.scores(data.features) - quick.scores(data.features)).max() <= 0.02


@pytest.mark.parametrize("hint", [None, 0.1])
def test_neither_the_order_of_samples_nor_that_of_labels_shows_in_a_bit(hint: float | None) -> None:
    data = digits()
    straight = head_for("ridge").solve_targets(learned(data, np.arange(200)), data.scale, hint=hint)
    turned = head_for("ridge").solve_targets(
        learned(data, np.random.default_rng(1).permutation(200)), data.scale, hint=hint
    )
    assert straight.labels != turned.labels
    for column, label in enumerate(straight.labels):
        other = turned.labels.index(label)
        assert straight.weight_dC[:, column].tobytes() == turned.weight_dC[:, other].tobytes()
        assert straight.bias_C[column] == turned.bias_C[other]


def test_what_was_never_seen_is_never_announced_and_what_was_always_seen_is() -> None:
    data = digits()
    sums = TargetSums(64, ["never"])
    sums.add_sets(data.quantised[:50], [["always", *names(row)] for row in data.targets[:50]])
    for kind in ("ridge", "balanced_ridge"):
        head = head_for(kind).solve_targets(sums, data.scale)
        scores = head.scores(data.features)
        assert (scores[:, head.labels.index("never")] == 0).all()
        assert (scores[:, head.labels.index("always")] > 0.95).all()


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_few_samples_give_finite_scores_that_say_little(count: int) -> None:
    data = digits()
    for kind in ("ridge", "balanced_ridge"):
        scores = solved(data, count, kind).scores(data.features)
        assert np.isfinite(scores).all()
        assert ((scores >= 0) & (scores <= 1)).all()


def test_constant_features_and_constant_outputs_give_the_mean() -> None:
    outputs = (Output(name="y", low=0, high=1), Output(name="z", low=0, high=1))
    sums = TargetSums(3, outputs=outputs)
    scale = FeatureScale(step_d=np.ones(3, np.float32))
    sums.add_values(np.full((4, 3), 7, np.int16), np.array([[0.0, 0.25], [1.0, 0.25], [1.0, 0.25], [0.0, 0.25]]))
    head = head_for("ridge").solve_targets(sums, scale)
    np.testing.assert_allclose(head.scores(np.full((2, 3), 7, np.float32)), [[0.5, 0.25]] * 2, atol=1e-4)
    assert not head.weight_dC.any()


def test_what_cannot_be_solved_is_refused_by_field() -> None:
    scale = FeatureScale(step_d=np.ones(3, np.float32))
    sums = TargetSums(3, outputs=(Output(name="y", low=0, high=1),))
    with pytest.raises(PreconditionError) as empty:
        head_for("ridge").solve_targets(sums, scale)
    assert empty.value.reason == "EMPTY_MEMORY"
    sums.add_values(np.ones((1, 3), np.int16), np.array([[0.5]]))
    with pytest.raises(InvalidError, match="positive"):
        head_for("ridge").solve_targets(sums, scale, hint=-1.0)
    for kind in ("lda", "ncm", "balanced_ridge"):
        with pytest.raises(SpecError, match="regression; write ridge") as refused:
            head_for(kind).solve_targets(sums, scale)
        assert refused.value.field == "spec.head.kind"


def test_samples_without_any_label_make_no_head_yet() -> None:
    data = digits()
    sums = TargetSums(data.features.shape[1])
    sums.add_sets(data.quantised[:3], [[], [], []])
    for kind in ("ridge", "balanced_ridge"):
        with pytest.raises(PreconditionError, match="no sample has had a label yet") as refusal:
            head_for(kind).solve_targets(sums, data.scale)
        assert refusal.value.reason == "EMPTY_MEMORY"
