"""The heads against independent formulas: on the samples, with explicit inverses, or scikit-learn's."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.covariance import OAS
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import Ridge as SklearnRidge
from tests.properties.test_sums import shuffled_and_sharded, stream

from everlearn.heads import head_for
from everlearn.heads._ridge import ALPHAS, Tridiagonal
from everlearn.heads.balanced_lda import _probes
from everlearn.shrinkage import oas_shrinkage
from everlearn.sums import Sums
from everlearn.values import FeatureScale, LinearHead

Float = npt.NDArray[np.float64]
KINDS = ["balanced_lda", "balanced_ridge", "lda", "ncm", "ridge"]


class Cloud:
    """Gaussian classes on the integer grid; `features` are what the integers stand for."""

    def __init__(
        self, *, samples: int = 60, dim: int = 9, classes: int = 4, seed: int = 0, counts: list[int] | None = None
    ) -> None:
        rng = np.random.default_rng(seed)
        self.scale = FeatureScale(step_d=rng.uniform(0.001, 0.01, dim).astype(np.float32))
        some_of_each = np.concatenate([np.arange(classes), rng.integers(0, classes, samples - classes)])
        self.target = np.sort(some_of_each) if counts is None else np.repeat(range(classes), counts)
        centre = rng.normal(300, 150, (classes, dim))
        noise = rng.normal(0, 130, (self.target.size, dim)) @ rng.normal(0, 0.5, (dim, dim))
        self.quantised = np.clip(centre[self.target] + noise, -2047, 2047).astype(np.int16)
        self.features = self.quantised.astype(np.float64) * self.scale.step_d.astype(np.float64)
        self.labels = [f"class {index}" for index in self.target]
        self.sums = Sums(dim)
        self.sums.add(self.quantised, self.labels)
        self.onehot = np.eye(classes)[self.target]

    def solve(self, kind: str, regularization: float | None = None) -> LinearHead:
        head = head_for(kind, "auto" if regularization is None else regularization)
        return head.solve(self.sums, self.scale)

    def scores(self, head: LinearHead) -> Float:
        return self.features @ head.weight_dC.astype(np.float64) + head.bias_C


@pytest.mark.parametrize("kind", KINDS)
def test_a_hundred_orders_batchings_and_shardings_give_bit_identical_heads(kind: str) -> None:
    batch = stream(samples=300, dim=24, classes=5)
    scale = FeatureScale(step_d=np.linspace(0.001, 0.004, 24, dtype=np.float32))
    straight = Sums(24, ["declared only"])
    straight.add(*batch)
    wanted = columns(head_for(kind).solve(straight, scale))
    for seed in range(100):
        sums = shuffled_and_sharded(batch, seed)
        assert columns(head_for(kind).solve(sums, scale)) == wanted


def columns(head: LinearHead) -> dict[str, bytes]:
    """label -> its weights and bias, bit for bit; classes without samples left out."""
    return {
        label: head.weight_dC[:, index].tobytes() + head.bias_C[index].tobytes()
        for index, label in enumerate(head.labels)
        if head.bias_C[index] > -1e29
    }


@pytest.mark.parametrize("alpha", [1e-4, 1e-2, 1.0, 100.0])
@pytest.mark.parametrize("seed", range(3))
def test_ridge_is_scikit_learns_ridge_on_all_samples(alpha: float, seed: int) -> None:
    cloud = Cloud(seed=seed)
    centred = cloud.features - cloud.features.mean(axis=0)
    penalty = alpha * np.trace(centred.T @ centred) / centred.shape[1]
    joint = SklearnRidge(alpha=penalty, solver="cholesky").fit(cloud.features, cloud.onehot)
    head = cloud.solve("ridge", alpha)
    np.testing.assert_allclose(cloud.scores(head), joint.predict(cloud.features), atol=2e-6)
    np.testing.assert_allclose(head.weight_dC, joint.coef_.T, rtol=1e-5, atol=1e-6 * abs(joint.coef_).max())


@pytest.mark.parametrize("seed", range(3))
def test_balanced_ridge_is_its_equations_solved_directly(seed: int) -> None:
    cloud = Cloud(seed=seed)
    count = cloud.onehot.sum(axis=0)
    mean = cloud.onehot.T @ cloud.features / count[:, None]
    within = cloud.features - mean[cloud.target]
    grand = mean.mean(axis=0)
    moment = len(count) * within.T @ within / len(within) + (mean - grand).T @ (mean - grand)
    penalty = 0.1 * np.trace(moment) / len(moment) * np.eye(len(moment))
    weight = np.linalg.solve(moment + penalty, (mean - grand).T)
    head = cloud.solve("balanced_ridge", 0.1)
    np.testing.assert_allclose(head.weight_dC, weight, rtol=1e-5, atol=1e-6 * abs(weight).max())
    np.testing.assert_allclose(head.bias_C, 1 / len(count) - grand @ weight, rtol=1e-5, atol=1e-6)


def test_balanced_ridge_is_weighted_ridge_on_the_samples_where_classes_have_one_shape() -> None:
    rng = np.random.default_rng(3)
    offsets = rng.integers(-200, 200, (6, 4))
    repeats = (1, 3, 8)  # each class: the same cloud, repeated, elsewhere
    quantised = np.concatenate([np.tile(offsets, (n, 1)) + 300 * rng.integers(-3, 4, 4) for n in repeats])
    target = np.repeat(range(3), [6 * n for n in repeats])
    scale = FeatureScale(step_d=np.full(4, 0.01, np.float32))
    sums = Sums(4)
    sums.add(quantised.astype(np.int16), [str(index) for index in target])
    features = quantised * np.float64(np.float32(0.01))
    weight = 1 / np.bincount(target)[target]
    centred = features - weight @ features / weight.sum()
    penalty = 0.01 * np.trace(centred.T @ (weight[:, None] * centred)) / 4
    joint = SklearnRidge(alpha=penalty, solver="cholesky").fit(features, np.eye(3)[target], sample_weight=weight)
    head = head_for("balanced_ridge", 0.01).solve(sums, scale)
    np.testing.assert_allclose(head.weight_dC, joint.coef_.T, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(head.bias_C, joint.intercept_, rtol=1e-5, atol=1e-6)


def test_balanced_ridge_equals_ridge_where_classes_are_of_equal_size() -> None:
    cloud = Cloud(counts=[15, 15, 15, 15])
    plain, balanced = cloud.solve("ridge"), cloud.solve("balanced_ridge")
    assert plain.regularization == balanced.regularization
    np.testing.assert_allclose(plain.weight_dC, balanced.weight_dC, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("samples", "dim"), [(60, 9), (30, 40), (400, 12)])
def test_the_penalty_is_that_of_brute_force_gcv_with_the_explicit_hat_matrix(seed: int, samples: int, dim: int) -> None:
    cloud = Cloud(samples=samples, dim=dim, seed=seed)
    centred = cloud.features - cloud.features.mean(axis=0)
    gram = centred.T @ centred
    score = {}
    for alpha in ALPHAS:
        penalty = alpha * np.trace(gram) / dim * np.eye(dim)
        hat = centred @ np.linalg.solve(gram + penalty, centred.T) + 1 / samples
        if np.trace(hat) < 0.95 * samples:
            residual = cloud.onehot - hat @ cloud.onehot
            score[alpha] = np.sum(residual**2) / (1 - np.trace(hat) / samples) ** 2
    assert cloud.solve("ridge").regularization == min(score, key=lambda alpha: score[alpha])


@given(st.integers(1, 30), st.integers(0, 2**32 - 1))
def test_the_tridiagonal_route_solves_as_numpy_does(dim: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(dim, rng.integers(1, dim + 3)))
    matrix, target = root @ root.T, np.asfortranarray(rng.normal(size=(dim, 3)))
    tri = Tridiagonal(np.asfortranarray(np.tril(matrix)))
    solution = tri.rotate_back(tri.solve(tri.rotate(target), 0.7))
    np.testing.assert_allclose(solution, np.linalg.solve(matrix + 0.7 * np.eye(dim), target), rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(np.sort(tri.eigenvalues()), np.linalg.eigvalsh(matrix).clip(0), atol=1e-9 * dim * 9)


@pytest.mark.parametrize("kind", ["balanced_lda", "balanced_ridge", "ridge"])
def test_an_earlier_penalty_as_hint_gives_the_head_that_the_search_gives(kind: str) -> None:
    cloud = Cloud(seed=4)
    searched = cloud.solve(kind)
    quick = head_for(kind).solve(cloud.sums, cloud.scale, hint=searched.regularization)
    assert quick.regularization == searched.regularization
    np.testing.assert_allclose(quick.weight_dC, searched.weight_dC, rtol=1e-4, atol=1e-6)
    fixed = head_for(kind, 0.5).solve(cloud.sums, cloud.scale, hint=searched.regularization)
    assert fixed.regularization == 0.5  # what is declared stands above a hint


@pytest.mark.parametrize("rho", [1e-3, 0.1, 0.9])
def test_lda_is_scikit_learns_lda_with_the_same_shrinkage(rho: float) -> None:
    cloud = Cloud(counts=[12, 12, 12, 12], seed=2)
    peer = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=rho, priors=[0.25] * 4)
    theirs = peer.fit(cloud.features, cloud.target).decision_function(cloud.features)
    ours = cloud.scores(cloud.solve("lda", rho)) * 48 / (48 - 4)  # they divide the scatter by n, we by n - C
    spread = ours - theirs  # scores may differ by what is common to all classes
    np.testing.assert_allclose(spread, spread[:, :1] * np.ones(4), atol=2e-4)


def test_shrinkage_is_scikit_learns_oas_but_for_the_terms_it_drops_at_high_dimension() -> None:
    data = np.random.default_rng(0).normal(size=(50, 400)) * np.linspace(0.2, 2, 400)
    covariance = np.cov(data.T, bias=True)
    ours = oas_shrinkage(float(np.trace(covariance)), float(np.sum(covariance**2)), 400, 50)
    assert ours == pytest.approx(OAS().fit(data).shrinkage_, rel=1e-3)


def test_shrinkage_is_equation_23_of_chen_et_al_in_exact_fractions() -> None:
    d, n, trace, square = 3, 7, Fraction(6), Fraction(20)
    exact = ((1 - Fraction(2, d)) * square + trace**2) / ((n + 1 - Fraction(2, d)) * (square - trace**2 / d))
    assert exact < 1
    assert oas_shrinkage(6.0, 20.0, 3, 7) == pytest.approx(float(exact), rel=1e-15)


def test_lda_of_one_class_shrinks_as_oas_of_its_covariance() -> None:
    cloud = Cloud(samples=40, dim=6, classes=1)
    covariance = np.cov(cloud.features.T)
    wanted = oas_shrinkage(float(np.trace(covariance)), float(np.sum(covariance**2)), 6, 39)
    assert cloud.solve("lda").regularization == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("counts", [[15, 15, 15, 15], [40, 12, 5, 2]], ids=["even", "uneven"])
def test_balanced_lda_is_its_equations_with_an_explicit_inverse(counts: list[int]) -> None:
    cloud = Cloud(counts=counts, seed=5)
    count, samples, classes = np.array(counts, float), sum(counts), len(counts)
    mean = cloud.onehot.T @ cloud.features / count[:, None]
    centred = mean - mean.mean(axis=0)
    within = (cloud.features - mean[cloud.target]).T @ (cloud.features - mean[cloud.target])
    covariance = within / (samples - classes)
    second = within / samples + centred.T @ centred / classes
    penalty = 0.02 * np.trace(second) / 9 * samples / (samples - classes)
    inverse = np.linalg.inv(covariance + penalty * np.eye(9))
    distance = np.sum(centred @ inverse * centred, axis=1)
    true = np.maximum(distance - np.trace(inverse @ covariance) / count, 0.6 * distance)
    share = true / distance
    wanted = share * ((cloud.features - mean.mean(axis=0)) @ inverse @ centred.T) + (0.5 - share) * true
    head = cloud.solve("balanced_lda", 0.02)
    np.testing.assert_allclose(cloud.scores(head), wanted, rtol=1e-4, atol=2e-4 * np.abs(wanted).max())


def test_balanced_lda_takes_the_penalty_of_balanced_ridge_or_a_weaker_one_where_classes_are_uneven() -> None:
    even, uneven = Cloud(counts=[15, 15, 15, 15]), Cloud(counts=[30, 10, 3, 1], dim=40, seed=1)
    assert even.solve("balanced_lda").regularization == even.solve("balanced_ridge").regularization
    assert uneven.solve("balanced_lda").regularization < uneven.solve("balanced_ridge").regularization


def test_balanced_lda_is_plain_lda_where_every_class_has_many_samples() -> None:
    cloud = Cloud(counts=[4000] * 4, seed=1)
    plain, balanced = cloud.scores(cloud.solve("lda", 1e-6)), cloud.scores(cloud.solve("balanced_lda", 1e-6))
    np.testing.assert_allclose(np.diff(balanced, axis=1), np.diff(plain, axis=1), rtol=0.02, atol=0.02)


def test_new_samples_of_a_rare_class_are_found_by_balanced_lda_and_lost_by_plain_lda() -> None:
    """Gaussian classes of which the last has six samples, many features: the mean over draws of its recall."""
    rng = np.random.default_rng(0)
    recall: dict[str, list[float]] = {"lda": [], "balanced_lda": []}
    scale = FeatureScale(step_d=np.full(120, 0.01, np.float32))
    for _ in range(5):
        centre = rng.normal(0, 0.35, (4, 120))
        target = np.repeat(range(4), [400, 400, 400, 6])
        sums = Sums(120)
        for rows in np.array_split(rng.permutation(len(target)), 4):
            drawn = centre[target[rows]] + rng.normal(size=(len(rows), 120))
            sums.add(np.round(drawn / 0.01).clip(-2047, 2047).astype(np.int16), [str(index) for index in target[rows]])
        new = (centre[3] + rng.normal(size=(500, 120))).astype(np.float32)
        for kind, found in recall.items():
            head = head_for(kind, "auto").solve(sums, scale)
            found.append(float((np.array(head.labels)[head.scores(new).argmax(axis=1)] == "3").mean()))
    assert np.mean(recall["balanced_lda"]) > np.mean(recall["lda"]) + 0.2


def test_the_trace_of_balanced_lda_is_estimated_within_a_few_percent_beyond_the_exact_dimensions() -> None:
    rng = np.random.default_rng(1)
    root = rng.normal(size=(400, 300)) * rng.exponential(1, 300)
    within = root @ root.T
    ridge = 0.05 * np.trace(within) / 400
    probes = _probes(400)
    estimate = 400 - ridge * np.sum(probes * np.linalg.solve(within + ridge * np.eye(400), probes))
    eigenvalues = np.linalg.eigvalsh(within).clip(0)
    assert estimate == pytest.approx(np.sum(eigenvalues / (eigenvalues + ridge)), rel=0.05)


def test_ncm_scores_are_cosines_to_the_class_means() -> None:
    cloud = Cloud(seed=6)
    means = np.stack([cloud.features[cloud.target == index].mean(axis=0) for index in range(4)])
    cosine = cloud.features @ means.T / np.outer(np.linalg.norm(cloud.features, axis=1), np.linalg.norm(means, axis=1))
    np.testing.assert_allclose(cloud.solve("ncm").scores(cloud.features.astype(np.float32)), cosine, atol=1e-5)


def test_a_rare_class_is_found_by_balanced_ridge_and_lost_by_plain_ridge() -> None:
    train = Cloud(counts=[300, 300, 300, 4], dim=12, seed=1)
    rare = train.target == 3
    found = {
        kind: (train.scores(train.solve(kind))[rare].argmax(axis=1) == 3).mean() for kind in ("balanced_ridge", "ridge")
    }
    assert found["balanced_ridge"] > found["ridge"]
