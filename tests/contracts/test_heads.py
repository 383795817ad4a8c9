"""What every head must do, whatever file it lives in: each kind in everlearn/heads is picked up by itself."""

from __future__ import annotations

import math

import numpy as np
import pytest

import everlearn.heads
from everlearn import plugins
from everlearn.errors import InvalidError, PreconditionError, SpecError
from everlearn.heads import head_for
from everlearn.outputs import Output
from everlearn.spec.composition import HEADS_OF
from everlearn.sums import Sums
from everlearn.target_sums import TargetSums
from everlearn.values import FeatureScale, LinearHead, Task

KINDS = plugins.kinds(everlearn.heads)
DIM = 16


def scale(dim: int = DIM) -> FeatureScale:
    return FeatureScale(step_d=np.full(dim, 0.002, np.float32))


def clusters(classes: int, samples: int, *, dim: int = DIM, seed: int = 0) -> tuple[np.ndarray, list[str]]:
    """Well-separated classes, of at least one sample each."""
    rng = np.random.default_rng(seed)
    centre = rng.integers(0, 1500, (classes, dim))
    target = np.concatenate([np.arange(classes), rng.integers(0, classes, samples - classes)])
    return (centre[target] + rng.integers(-40, 41, (samples, dim))).astype(np.int16), [f"c{i:04}" for i in target]


def learned(features: np.ndarray, labels: list[str], declared: list[str] | None = None) -> Sums:
    sums = Sums(features.shape[1], declared or [])
    sums.add(features, labels)
    return sums


def predicted(head: LinearHead, features: np.ndarray) -> list[str]:
    scores = head.scores(scale(features.shape[1]).restore(features))
    assert scores.dtype == np.float32
    assert np.isfinite(scores).all()
    return [head.labels[index] for index in scores.argmax(axis=1)]


def accuracy(head: LinearHead, features: np.ndarray, labels: list[str]) -> float:
    return float(np.mean(np.array(predicted(head, features)) == labels))


def test_the_five_documented_heads_are_there() -> None:
    assert set(KINDS) >= {"balanced_lda", "balanced_ridge", "lda", "ncm", "ridge"}


def test_an_unknown_head_is_refused_by_field_with_the_known_ones() -> None:
    with pytest.raises(SpecError, match="balanced_lda, balanced_ridge, lda, ncm, ridge") as caught:
        head_for("svm")
    assert caught.value.field == "spec.head.kind"


@pytest.mark.parametrize("kind", KINDS)
class TestEveryHead:
    def test_learns_separable_classes(self, kind: str) -> None:
        features, labels = clusters(6, 300)
        head = head_for(kind).solve(learned(features, labels), scale())
        assert accuracy(head, features, labels) > 0.98
        assert head.weight_dC.dtype == head.bias_C.dtype == np.float32

    def test_refuses_an_empty_memory(self, kind: str) -> None:
        for sums in (Sums(DIM), Sums(DIM, ["declared"])):
            with pytest.raises(PreconditionError) as caught:
                head_for(kind).solve(sums, scale())
            assert caught.value.reason == "EMPTY_MEMORY"

    def test_refuses_a_scale_of_another_dimension(self, kind: str) -> None:
        with pytest.raises(InvalidError):
            head_for(kind).solve(learned(*clusters(2, 4)), scale(DIM + 1))

    def test_works_from_the_first_sample_on(self, kind: str) -> None:
        features, labels = clusters(1, 1)
        assert predicted(head_for(kind).solve(learned(features, labels), scale()), features) == labels

    def test_works_with_one_class(self, kind: str) -> None:
        features, labels = clusters(1, 50)
        assert accuracy(head_for(kind).solve(learned(features, labels), scale()), features, labels) == 1

    def test_works_with_one_sample_a_class(self, kind: str) -> None:
        features, labels = clusters(5, 5)
        assert predicted(head_for(kind).solve(learned(features, labels), scale()), features) == labels

    def test_works_with_fewer_samples_than_features(self, kind: str) -> None:
        features, labels = clusters(3, 9, dim=200)
        assert predicted(head_for(kind).solve(learned(features, labels), scale(200)), features) == labels

    def test_works_with_one_feature(self, kind: str) -> None:
        features = np.array([[-100], [-110], [300], [310]], np.int16)
        labels = ["low", "low", "high", "high"]
        head = head_for(kind).solve(learned(features, labels), scale(1))
        assert predicted(head, features) == labels

    @pytest.mark.parametrize("value", [0, 1, 700], ids=["zero", "least", "large"])
    def test_identical_samples_give_finite_scores_and_keep_equal_classes_equal(self, kind: str, value: int) -> None:
        features = np.full((6, DIM), value, np.int16)
        for labels in (["a"] * 6, ["a", "b"] * 3):
            head = head_for(kind).solve(learned(features, labels), scale())
            scores = head.scores(scale().restore(features))
            assert np.isfinite(scores).all()
            assert np.ptp(scores) < 1e-5

    def test_one_class_of_identical_samples_beside_another_is_told_apart(self, kind: str) -> None:
        features = np.array([[900, 3, 5]] * 4 + [[2, 800, 5]] * 9, np.int16)
        labels = ["a"] * 4 + ["b"] * 9
        assert predicted(head_for(kind).solve(learned(features, labels), scale(3)), features) == labels

    def test_works_with_features_that_are_constant_or_copies_of_others(self, kind: str) -> None:
        features, labels = clusters(4, 120)
        features[:, 8:] = features[:, :8]
        features[:, 3] = 0
        features[:, 4] = 1234
        head = head_for(kind).solve(learned(features, labels), scale())
        assert accuracy(head, features, labels) > 0.95

    def test_a_class_that_was_only_declared_never_wins_and_changes_no_bit_of_the_others(self, kind: str) -> None:
        features, labels = clusters(4, 60)
        plain = head_for(kind).solve(learned(features, labels), scale())
        with_empty = head_for(kind).solve(learned(features, labels, ["never", "c0002"]), scale())
        assert with_empty.labels[:2] == ("never", "c0002")
        noise = np.random.default_rng(0).integers(-2047, 2048, (500, DIM)).astype(np.int16)
        assert "never" not in predicted(with_empty, noise)
        for index, label in enumerate(plain.labels):
            other = with_empty.labels.index(label)
            assert with_empty.weight_dC[:, other].tobytes() == plain.weight_dC[:, index].tobytes()
            assert with_empty.bias_C[other] == plain.bias_C[index]

    def test_is_bit_identical_whatever_order_labels_arrive_in(self, kind: str) -> None:
        features, labels = clusters(6, 100)
        heads = []
        for seed in range(5):
            order = np.random.default_rng(seed).permutation(100)
            sums = learned(features[order], [labels[row] for row in order])
            head = head_for(kind).solve(sums, scale())
            assert head.labels == tuple(sums.labels)
            by_label = np.argsort(head.labels)
            heads.append((head.weight_dC[:, by_label].tobytes(), head.bias_C[by_label].tobytes(), head.regularization))
        assert len(set(heads)) == 1

    def test_two_thousand_classes_work(self, kind: str) -> None:
        features, labels = clusters(2000, 3000, dim=96)
        head = head_for(kind).solve(learned(features, labels), scale(96))
        assert head.weight_dC.shape == (96, 2000)
        assert accuracy(head, features[:200], labels[:200]) > 0.5

    def test_its_own_regularization_is_a_hint_it_takes(self, kind: str) -> None:
        for features, labels in (clusters(1, 1), clusters(5, 80)):
            sums = learned(features, labels)
            first = head_for(kind).solve(sums, scale())
            assert math.isfinite(first.regularization)
            again = head_for(kind).solve(sums, scale(), hint=first.regularization)
            assert predicted(again, features) == predicted(first, features)

    def test_solving_leaves_the_sums_alone(self, kind: str) -> None:
        sums = learned(*clusters(3, 30))
        before = sums.to_bytes()
        head_for(kind).solve(sums, scale())
        head_for(kind).solve(sums, scale(), hint=0.1)
        assert sums.to_bytes() == before

    @pytest.mark.parametrize("regularization", [-1.0, 0.0, math.nan, math.inf, 1e9])
    def test_a_regularization_without_meaning_is_refused_by_field(self, kind: str, regularization: float) -> None:
        with pytest.raises(SpecError) as caught:
            head_for(kind, regularization)
        assert caught.value.field == "spec.head.regularization"


@pytest.mark.parametrize(
    ("kind", "value"), [("balanced_lda", 0.25), ("balanced_ridge", 0.25), ("ridge", 0.25), ("lda", 0.25)]
)
def test_a_declared_regularization_is_the_one_that_is_used(kind: str, value: float) -> None:
    assert head_for(kind, value).solve(learned(*clusters(4, 90)), scale()).regularization == value


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("task", ["multilabel", "regression"])
def test_a_head_solves_the_tasks_it_names_and_refuses_the_others_by_field(kind: str, task: Task) -> None:
    random = np.random.default_rng(0)
    features = random.integers(-1000, 1000, (60, DIM)).astype(np.int16)
    sums = TargetSums(DIM, outputs=[Output(name="y", low=-1, high=1)] if task == "regression" else [])
    if task == "regression":
        sums.add_values(features, features[:, :1] / 1000)
    else:
        sums.add_sets(features, sets_of(features))
    head = head_for(kind)
    declared = kind in HEADS_OF[task]
    assert declared == (task in head.TASKS), "composition.HEADS_OF and the head disagree"
    if not declared:
        with pytest.raises(SpecError) as caught:
            head.solve_targets(sums, scale())
        assert caught.value.field == "spec.head.kind"
        return
    solved = head.solve_targets(sums, scale())
    scores = solved.scores(scale().restore(features))
    assert solved.task == task
    if task == "regression":
        assert np.abs(scores - features[:, :1] / 1000).max() < 0.01
    else:
        has = [[label in labels for label in solved.labels] for labels in sets_of(features)]
        assert ((scores >= 0.5) == has).mean() > 0.9
    assert "classification" in head.TASKS


def sets_of(features: np.ndarray) -> list[list[str]]:
    return [[name for name, value in zip("ab", row, strict=False) if value > 0] for row in features]
