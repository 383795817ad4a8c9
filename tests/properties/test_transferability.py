"""LogME, H-score and GCV residual from sums, against what the papers compute from the samples themselves."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from everlearn.errors import InvalidError, PreconditionError
from everlearn.metrics.transferability import gcv_residual, h_score, log_me, transferability
from everlearn.sums import Sums
from everlearn.values import FeatureScale

Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]


def of_features(features_Bd: Float, target_B: Int) -> tuple[Sums, FeatureScale, Float]:
    """Sums on a 16-bit grid, its scale, and the features that the integers stand for."""
    step_d = (np.maximum(np.abs(features_Bd).max(axis=0), 1e-9) / 32000).astype(np.float32)
    scale = FeatureScale(step_d=step_d, bits=16)
    quantised_Bd = scale.quantise(features_Bd.astype(np.float32))
    sums = Sums(features_Bd.shape[1])
    sums.add(quantised_Bd, [f"c{label}" for label in target_B])
    return sums, scale, quantised_Bd.astype(np.float64) * step_d.astype(np.float64)


def cloud(seed: int, *, samples: int = 80, dim: int = 6, classes: int = 3, apart: float = 1.0) -> tuple[Float, Int]:
    rng = np.random.default_rng(seed)
    target_B = np.concatenate([np.arange(classes), rng.integers(0, classes, samples - classes)])
    mixing_dd = rng.normal(0, 1, (dim, dim))
    return apart * rng.normal(0, 2, (classes, dim))[target_B] + rng.normal(0, 1, (samples, dim)) @ mixing_dd, target_B


def digits() -> tuple[Float, Int]:
    """700 real digits through one fixed random layer and a rectifier: 96 features."""
    images, target = load_digits(return_X_y=True)
    weight = np.random.default_rng(0).normal(0, 1, (64, 96))
    return np.maximum(images[:700] / 16 @ weight / 3, 0), target[:700]


def paper_log_me(features_Bd: Float, target_B: Int) -> float:
    """You et al. 2021, algorithm 1 (their own code's loop, run until it has converged), on the samples."""
    samples, dim = features_Bd.shape
    left, singular, right = np.linalg.svd(features_Bd, full_matrices=False)
    sigma = singular**2
    found = []
    for label in np.unique(target_B):
        y = (target_B == label).astype(float)
        x = left.T @ y
        alpha = beta = 1.0
        for _ in range(5000):
            t = alpha / beta
            gamma = np.sum(sigma / (sigma + t))
            squares = np.sum(sigma * x**2 / (t + sigma) ** 2)
            rest = np.sum((t / (t + sigma)) ** 2 * x**2) + y @ y - x @ x
            alpha, beta = gamma / squares, (samples - gamma) / rest
            if abs(alpha / beta - t) < 1e-9 * t:
                break
        mean = right.T @ (singular * x * beta / (alpha + beta * sigma))
        explicit = np.linalg.slogdet(alpha * np.eye(dim) + beta * features_Bd.T @ features_Bd)[1]
        rest = np.sum((y - features_Bd @ mean) ** 2)
        evidence = 0.5 * (samples * np.log(beta) + dim * np.log(alpha) - samples * np.log(2 * np.pi) - explicit)
        found.append((evidence - 0.5 * (beta * rest + alpha * mean @ mean)) / samples)
    return float(np.mean(found))


def paper_h_score(features_Bd: Float, target_B: Int, shrinkage: float) -> float:
    """Ibrahim et al. 2022, with explicit inverses."""
    centred_Bd = features_Bd - features_Bd.mean(axis=0)
    covariance = centred_Bd.T @ centred_Bd / len(centred_Bd)
    means_Bd = np.zeros_like(centred_Bd)
    for label in np.unique(target_B):
        means_Bd[target_B == label] = centred_Bd[target_B == label].mean(axis=0)
    dim = covariance.shape[0]
    shrunk = (1 - shrinkage) * covariance + shrinkage * np.trace(covariance) / dim * np.eye(dim)
    return float((1 - shrinkage) * np.trace(np.linalg.pinv(shrunk) @ means_Bd.T @ means_Bd / len(means_Bd)))


def paper_gcv(features_Bd: Float, target_B: Int) -> float:
    """GCV through the explicit hat matrix of ridge with an intercept, over the same grid."""
    samples, dim = features_Bd.shape
    onehot = (target_B[:, None] == np.unique(target_B)).astype(float)
    centred = features_Bd - features_Bd.mean(axis=0)
    gram = centred.T @ centred
    scores = []
    for alpha in [np.inf, *10.0 ** (np.arange(4, -13, -1) / 2)]:
        hat = np.full((samples, samples), 1 / samples)
        if np.isfinite(alpha):
            hat += centred @ np.linalg.solve(gram + alpha * np.trace(gram) / dim * np.eye(dim), centred.T)
        if np.trace(hat) < 0.95 * samples:
            scores.append(np.sum((onehot - hat @ onehot) ** 2) / (1 - np.trace(hat) / samples) ** 2)
    return float(min(scores) / scores[0])


@pytest.mark.parametrize("seed", range(4))
def test_each_figure_is_what_the_papers_compute_from_the_samples(seed: int) -> None:
    sums, scale, features = of_features(*cloud(seed, apart=0.3 + 0.3 * seed))
    target = cloud(seed, apart=0.3 + 0.3 * seed)[1]
    assert log_me(sums, scale) == pytest.approx(paper_log_me(features, target), abs=3e-4)
    for shrinkage in (0.0, 0.1, 0.9):
        assert h_score(sums, scale, shrinkage=shrinkage)[0] == pytest.approx(
            paper_h_score(features, target, shrinkage), rel=1e-6
        )
    assert gcv_residual(sums, scale) == pytest.approx(paper_gcv(features, target), rel=1e-6)


def test_they_agree_on_real_digits_too() -> None:
    raw, target = digits()
    sums, scale, features = of_features(raw, target)
    found = transferability(sums, scale)
    assert (found.samples, found.classes) == (700, 10)
    assert found.log_me == pytest.approx(paper_log_me(features, target), abs=3e-4)
    assert found.h_score == pytest.approx(paper_h_score(features, target, found.h_shrinkage), rel=1e-6)
    assert found.gcv_residual == pytest.approx(paper_gcv(features, target), rel=1e-6)
    assert 0 < found.h_shrinkage < 0.2


def test_they_prefer_features_that_know_the_classes_to_noise_beside_them() -> None:
    raw, target = digits()
    noise = np.random.default_rng(1).normal(0, 1, raw.shape)
    good = transferability(*of_features(raw, target)[:2])
    half = transferability(*of_features(raw + noise, target)[:2])
    bad = transferability(*of_features(noise, target)[:2])
    assert good.log_me > half.log_me > bad.log_me
    assert good.h_score > half.h_score > bad.h_score
    assert good.gcv_residual < half.gcv_residual < bad.gcv_residual
    assert good.gcv_residual < 0.3
    assert bad.gcv_residual > 0.95


def test_a_case_by_hand() -> None:
    # One feature that is the label itself, +1 and -1, twice each: all variance lies between the classes.
    sums, scale, _ = of_features(np.array([[1.0], [1.0], [-1.0], [-1.0]]), np.array([0, 0, 1, 1]))
    assert h_score(sums, scale, shrinkage=0.0)[0] == pytest.approx(1.0)
    # alpha = 1e-6 of tr = 4: nothing is left; two degrees of four are used.
    assert gcv_residual(sums, scale) == pytest.approx(0.0, abs=1e-9)
    # Without an intercept x explains half of y: r(t) = 2 - 4 / (4 + t), and
    # 2 log p / n = log(n / (2 pi e r)) - log(1 + 4 / t) / 4.
    t = np.logspace(-8, 6, 400_001)
    by_hand = 0.5 * (np.log(4 / (2 - 4 / (4 + t))) - np.log(2 * np.pi) - 1) - np.log1p(4 / t) / 8
    assert log_me(sums, scale) == pytest.approx(by_hand.max(), abs=3e-4)


def test_features_that_are_all_alike_say_nothing() -> None:
    for value in (0.0, 3.0):
        sums, scale, _ = of_features(np.full((8, 3), value), np.arange(8) % 2)
        assert h_score(sums, scale) == (0.0, 1.0)
        assert gcv_residual(sums, scale) == 1.0
        assert np.isfinite(log_me(sums, scale))


def test_fewer_samples_than_features_still_give_finite_figures() -> None:
    found = transferability(*of_features(*cloud(3, samples=6, dim=40))[:2])
    assert np.isfinite(found.log_me)
    assert 0 <= found.h_score <= 2
    assert 0 <= found.gcv_residual <= 1


def test_one_class_and_an_impossible_shrinkage_are_refused() -> None:
    sums, scale, _ = of_features(np.ones((4, 2)), np.zeros(4, np.int64))
    with pytest.raises(PreconditionError, match="at least two classes") as refused:
        transferability(sums, scale)
    assert refused.value.reason == "ONE_CLASS"
    with pytest.raises(PreconditionError) as empty:
        transferability(Sums(2), scale)
    assert empty.value.reason == "EMPTY_MEMORY"
    with pytest.raises(InvalidError, match="from 0 to 1"):
        h_score(sums, scale, shrinkage=1.5)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 7), st.floats(0.01, 100))
def test_turning_and_scaling_the_features_changes_no_figure(seed: int, dim: int, factor: float) -> None:
    features, target = cloud(seed, dim=dim, samples=60)
    turn_dd = np.linalg.qr(np.random.default_rng(seed).normal(0, 1, (dim, dim)))[0]
    before = transferability(*of_features(features, target)[:2])
    after = transferability(*of_features(factor * features @ turn_dd, target)[:2])
    assert after.log_me == pytest.approx(before.log_me, abs=2e-3)
    assert after.h_score == pytest.approx(before.h_score, rel=0.01, abs=2e-3)
    assert after.gcv_residual == pytest.approx(before.gcv_residual, rel=0.01, abs=2e-3)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_any_invertible_map_leaves_the_unshrunk_h_score_and_no_map_lets_it_pass_its_bound(seed: int) -> None:
    features, target = cloud(seed, dim=4, samples=70, apart=5)
    mixing_dd = np.eye(4) + 0.3 * np.random.default_rng(seed).uniform(-1, 1, (4, 4))
    before = h_score(*of_features(features, target)[:2], shrinkage=0.0)[0]
    assert before <= 2 + 1e-9
    assert h_score(*of_features(features @ mixing_dd, target)[:2], shrinkage=0.0)[0] == pytest.approx(before, abs=0.02)


@settings(max_examples=20, deadline=None)
@given(st.randoms(use_true_random=False))
def test_the_order_of_samples_and_of_labels_changes_no_bit(random: object) -> None:
    features, target = cloud(1)
    order = np.random.default_rng(random.getrandbits(32)).permutation(len(target))  # type: ignore[attr-defined]  # random.Random
    assert transferability(*of_features(features, target)[:2]) == transferability(
        *of_features(features[order], target[order])[:2]
    )
