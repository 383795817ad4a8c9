"""How unlike all classes a sample is, from the sums alone: what is foreign is found, what is not mostly left alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score

from everlearn.errors import PreconditionError
from everlearn.heads import head_for
from everlearn.heads._novelty import solve_novelty
from everlearn.learners.closed_form import LearnedSums
from everlearn.learners.masked import Masked
from everlearn.sums import Sums
from everlearn.values import FeaturesBd, FeatureScale, Novelty

PIXELS = 64
SCALE = FeatureScale(step_d=np.full(PIXELS, 2.0**-6, np.float32))
Labels = npt.NDArray[np.str_]


@pytest.fixture(scope="module")
def digits() -> tuple[FeaturesBd, Labels]:
    """1,797 real digits of 8 x 8 pixels, by 43 people, values 0 to 16; shuffled."""
    pixels, target = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(target))
    return pixels[order].astype(np.float32), target[order].astype(str)


def sums_of(
    features_Nd: FeaturesBd, labels: Labels, scale: FeatureScale = SCALE, declared: tuple[str, ...] = ()
) -> Sums:
    sums = Sums(features_Nd.shape[1], declared)
    sums.add(scale.quantise(features_Nd), labels.tolist())
    return sums


def novelty_of(features_Nd: FeaturesBd, labels: Labels, *, false_alarms: float = 0.01) -> Novelty:
    return solve_novelty(sums_of(features_Nd, labels), SCALE, false_alarms=false_alarms)


def auroc(known_N: npt.NDArray[np.float32], foreign_M: npt.NDArray[np.float32]) -> float:
    truth = np.repeat([0, 1], [len(known_N), len(foreign_M)])
    return float(roc_auc_score(truth, np.concatenate([known_N, foreign_M])))


@pytest.mark.parametrize("learned", [300, 1400])
@pytest.mark.parametrize("level", [0.01, 0.05])
def test_digits_that_were_not_learned_are_seldom_unknown(
    digits: tuple[FeaturesBd, Labels], learned: int, level: float
) -> None:
    pixels, labels = digits
    novelty = novelty_of(pixels[:learned], labels[:learned], false_alarms=level)
    assert float(np.mean(novelty.of(pixels[1400:]) > 1)) <= 3 * level


def test_what_is_no_digit_is_told_from_digits_that_were_not_learned(digits: tuple[FeaturesBd, Labels]) -> None:
    pixels, labels = digits
    novelty, rng = novelty_of(pixels[:1400], labels[:1400]), np.random.default_rng(1)
    foreign = {
        "inverted": 16 - pixels[1400:],
        "shuffled": rng.permuted(pixels[1400:], axis=1),
        "on their side": pixels[1400:].reshape(-1, 8, 8).swapaxes(1, 2)[:, ::-1].reshape(-1, 64),
        "noise": rng.uniform(0, 16, (300, 64)).astype(np.float32),
    }
    found = {
        what: auroc(novelty.of(pixels[1400:]), novelty.of(np.ascontiguousarray(each))) for what, each in foreign.items()
    }
    assert min(found.values()) > 0.95, found
    assert np.mean(novelty.of(foreign["inverted"]) > 1) > 0.99
    assert np.mean(novelty.of(foreign["noise"]) > 1) > 0.99


def test_a_class_that_was_not_taught_is_found_better_than_by_the_distance_over_all_features(
    digits: tuple[FeaturesBd, Labels],
) -> None:
    pixels, labels = digits
    taught = ~np.isin(labels, ["8", "9"])
    learned, tested = taught.copy(), taught.copy()
    learned[1200:], tested[:1200] = False, False
    novelty = novelty_of(pixels[learned], labels[learned])
    everywhere = mahalanobis(pixels[learned], labels[learned])
    ours = auroc(novelty.of(pixels[tested]), novelty.of(pixels[~taught]))
    assert ours > 0.85
    assert ours > auroc(everywhere(pixels[tested]), everywhere(pixels[~taught])) - 0.02


def mahalanobis(features_Nd: FeaturesBd, labels: Labels) -> Callable[[FeaturesBd], npt.NDArray[np.float64]]:
    """Lee et al. 2018, over all features."""
    means = {label: features_Nd[labels == label].mean(axis=0) for label in np.unique(labels)}
    within_dd = np.cov((features_Nd - np.stack([means[label] for label in labels])).T) + 1e-3 * np.eye(PIXELS)
    inverse_dd = np.linalg.inv(within_dd)

    def of(tested_Bd: FeaturesBd) -> npt.NDArray[np.float64]:
        apart = [np.einsum("bd,de,be->b", tested_Bd - m, inverse_dd, tested_Bd - m) for m in means.values()]
        return np.min(apart, axis=0)

    return of


def test_the_limit_knows_that_few_samples_of_many_features_fit_their_own_covariance_too_well() -> None:
    rng, dim = np.random.default_rng(0), 400
    centre_Kd = rng.normal(0, 1, (4, dim))
    spread_d = np.logspace(0, -1.5, dim)
    scale = FeatureScale(step_d=np.full(dim, 2.0**-8, np.float32))

    def drawn(count: int) -> tuple[FeaturesBd, Labels]:
        which = rng.integers(0, 4, count)
        return (centre_Kd[which] + spread_d * rng.normal(0, 1, (count, dim))).astype(np.float32), which.astype(str)

    learned, labels = drawn(300)
    fresh, _ = drawn(2000)
    novelty = solve_novelty(sums_of(learned, labels, scale), scale, false_alarms=0.05)
    assert np.mean(novelty.of(fresh) > 1) <= 0.1
    # The control: by what was learned itself one would set the limit far too low.
    by_what_was_learned = float(np.quantile(novelty.of(learned), 0.95))
    assert np.mean(novelty.of(fresh) > by_what_was_learned) > 0.5


def test_equal_sums_give_equal_bits_whatever_the_order(digits: tuple[FeaturesBd, Labels]) -> None:
    pixels, labels = digits
    forwards = novelty_of(pixels[:500], labels[:500])
    backwards = novelty_of(pixels[:500][::-1], labels[:500][::-1])
    assert np.array_equal(forwards.basis_dk, backwards.basis_dk)
    assert np.array_equal(forwards.of(pixels), backwards.of(pixels))


def test_a_class_that_has_no_sample_is_near_to_nothing(digits: tuple[FeaturesBd, Labels]) -> None:
    pixels, labels = digits
    declared = solve_novelty(sums_of(pixels[:500], labels[:500], declared=("none yet",)), SCALE, false_alarms=0.01)
    assert declared.bias_C.shape == (11,)
    assert np.array_equal(declared.of(pixels), novelty_of(pixels[:500], labels[:500]).of(pixels))


def test_where_nobody_knows_how_samples_of_a_class_differ_nothing_is_unknown() -> None:
    one_each = np.eye(3, PIXELS, dtype=np.float32)
    novelty = novelty_of(one_each, np.array(["a", "b", "c"]))
    assert novelty.of(np.full((2, PIXELS), 9, np.float32)).tolist() == [0, 0]
    with pytest.raises(PreconditionError, match="no sample"):
        solve_novelty(Sums(PIXELS), SCALE, false_alarms=0.01)


@pytest.mark.parametrize(("dim", "classes"), [(1, 2), (2, 2), (3, 8), (5, 1), (40, 130)])
def test_few_features_one_class_and_many_classes_are_no_exception(dim: int, classes: int) -> None:
    rng = np.random.default_rng(3)
    which = np.arange(20 * classes) % classes
    centre_Kd = 6 * rng.normal(0, 1, (classes, dim))
    features_Nd = (centre_Kd[which] + rng.normal(0, 0.5, (len(which), dim))).astype(np.float32)
    scale = FeatureScale(step_d=np.full(dim, 2.0**-6, np.float32))
    novelty = solve_novelty(sums_of(features_Nd, which.astype(str), scale), scale, false_alarms=0.01)
    assert novelty.basis_dk.shape[1] == min(dim, min(classes - 1, 96) + 32)
    assert np.mean(novelty.of(features_Nd) > 1) < 0.05
    assert novelty.of(np.full((1, dim), 1000, np.float32))[0] > 1


def test_a_class_that_is_hidden_is_unknown(digits: tuple[FeaturesBd, Labels]) -> None:
    pixels, labels = digits
    kept = (labels != "0") | (np.cumsum(labels == "0") <= 20)
    pixels, labels = pixels[kept], labels[kept]
    sums = sums_of(pixels, labels)
    learned = LearnedSums(sums, head_for("lda"), SCALE, np.asarray(sums.count_C, np.int64), false_alarms=0.05)
    shown = Masked(learned, 32).solve().head
    assert "0" not in shown.labels
    assert shown.novelty is not None
    whole = learned.solve().head.novelty
    assert whole is not None
    zeros = pixels[labels == "0"]
    assert np.mean(whole.of(zeros) > 1) < 0.1
    assert np.mean(shown.novelty.of(zeros)) > 1.5 * np.mean(whole.of(zeros))
    assert np.array_equal(shown.novelty.of(pixels[labels == "1"]), whole.of(pixels[labels == "1"]))
