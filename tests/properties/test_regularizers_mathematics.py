"""The papers' equations, computed by hand and sample by sample, against what the regularisers keep and charge."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.trained_models import batch, grown, linear, step, tailed
from torch.nn import functional

from everlearn.regularizers import regularizer_for
from everlearn.regularizers.base import LinearScores, Regularizer
from everlearn.regularizers.si import XI
from everlearn.spec.recipe import Regularizer as Declared

KINDS = ("distill", "ewc", "l2sp", "mas", "si")
few = settings(max_examples=25, deadline=None)
SEED = st.integers(0, 2**16)


def made(kind: str, **options: object) -> Regularizer:
    return regularizer_for(Declared.model_validate({"kind": kind, **options}))


def nudged(model: torch.nn.Module, *, seed: int, by: float = 0.2) -> dict[str, torch.Tensor]:
    """Moves the weights, and tells by how much."""
    random = torch.Generator().manual_seed(seed)
    ways = {name: by * torch.randn(weight.shape, generator=random) for name, weight in model.named_parameters()}
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight += ways[name]
    return ways


def charged(regularizer: Regularizer, model: torch.nn.Module, *, seed: int = 99) -> float:
    inputs_Bd, _ = batch(seed=seed)
    return float(regularizer.penalty(model, inputs_Bd, model(inputs_Bd)).detach())


def observed(regularizer: Regularizer, model: torch.nn.Module, inputs_Bd: torch.Tensor) -> None:
    regularizer.consolidate(model)
    regularizer.observe(model, inputs_Bd, model(inputs_Bd))
    regularizer.consolidate(model)


def fisher_by_hand(model: torch.nn.Module, inputs_Bd: torch.Tensor) -> dict[str, torch.Tensor]:
    """E_x E_{y ~ p(y|x)} (d log p(y|x) / d weight)^2, one sample and one class at a time."""
    total = {name: torch.zeros_like(weight) for name, weight in model.named_parameters()}
    for row in inputs_Bd:
        scores = functional.log_softmax(model(row[None])[0], 0)
        for score in scores:
            gradients = torch.autograd.grad(score, list(model.parameters()), retain_graph=True)
            for name, gradient in zip(total, gradients, strict=True):
                total[name] += score.detach().exp() * gradient.square()
    return {name: value / len(inputs_Bd) for name, value in total.items()}


def sensitivity_by_hand(model: torch.nn.Module, inputs_Bd: torch.Tensor) -> dict[str, torch.Tensor]:
    """E_x |d ||z||^2 / d weight|, one sample at a time."""
    total = {name: torch.zeros_like(weight) for name, weight in model.named_parameters()}
    for row in inputs_Bd:
        gradients = torch.autograd.grad(model(row[None]).square().sum(), list(model.parameters()))
        for name, gradient in zip(total, gradients, strict=True):
            total[name] += gradient.abs()
    return {name: value / len(inputs_Bd) for name, value in total.items()}


def of_state(regularizer: Regularizer, group: str) -> dict[str, torch.Tensor]:
    return {
        path.removeprefix(f"{group}/"): value
        for path, value in regularizer.state().items()
        if path.startswith(f"{group}/")
    }


@few
@given(seed=SEED, rows=st.integers(1, 9), strength=st.floats(0.1, 100))
@pytest.mark.parametrize(
    ("kind", "factor", "by_hand"), [("ewc", 0.5, fisher_by_hand), ("mas", 1.0, sensitivity_by_hand)]
)
def test_a_linear_head_has_the_papers_importance_and_penalty_exactly(
    kind, factor, by_hand, seed, rows, strength
) -> None:
    model = linear(seed=seed)
    inputs_Bd, _ = batch(rows, seed=seed)
    regularizer = made(kind, strength=strength)
    observed(regularizer, model, inputs_Bd)
    importance, expected = of_state(regularizer, "importance"), by_hand(model, inputs_Bd)
    for name in expected:
        torch.testing.assert_close(importance[name], expected[name], rtol=1e-4, atol=1e-6)
    ways = nudged(model, seed=seed)
    by_equation = factor * strength * sum(float((expected[name] * ways[name].square()).sum()) for name in ways)
    assert charged(regularizer, model) == pytest.approx(by_equation, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize(("kind", "by_hand"), [("ewc", fisher_by_hand), ("mas", sensitivity_by_hand)])
def test_the_head_behind_a_tail_is_exact_too(kind, by_hand) -> None:
    model, (inputs_Bd, _) = tailed(), batch()
    regularizer = made(kind)
    observed(regularizer, model, inputs_Bd)
    expected = by_hand(model, inputs_Bd)
    for name in ("head.weight", "head.bias"):
        torch.testing.assert_close(of_state(regularizer, "importance")[name], expected[name], rtol=1e-4, atol=1e-6)


class Directed(torch.nn.Module):
    """A head that judges directions: linear in x / |x|, with no `nn.Linear` in it."""

    def __init__(self) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(3)
        self.weight = torch.nn.Parameter(torch.randn(3, 5, generator=random))

    def forward(self, inputs_Bd: torch.Tensor) -> torch.Tensor:
        return 4 * functional.normalize(inputs_Bd) @ self.weight.T


class Spelled(Directed):
    def linear_scores(self, inputs_Bd: torch.Tensor) -> LinearScores:
        scaled_Bd = 4 * functional.normalize(inputs_Bd)
        return LinearScores(scaled_Bd @ self.weight.T, scaled_Bd, self.weight, None)


@pytest.mark.parametrize(("kind", "by_hand"), [("ewc", fisher_by_hand), ("mas", sensitivity_by_hand)])
def test_a_head_that_spells_its_product_out_is_exact(kind, by_hand) -> None:
    inputs_Bd, _ = batch()
    expected = by_hand(Directed(), inputs_Bd)["weight"]
    spelled, unspelled = made(kind), made(kind)
    observed(spelled, Spelled(), inputs_Bd)
    observed(unspelled, Directed(), inputs_Bd)
    torch.testing.assert_close(of_state(spelled, "importance")["weight"], expected, rtol=1e-4, atol=1e-6)
    assert float((of_state(unspelled, "importance")["weight"] - expected).norm() / expected.norm()) > 0.1


def test_ewc_of_a_tail_is_the_models_fisher_on_average_without_a_gradient_per_sample() -> None:
    model, (inputs_Bd, class_B) = tailed(), batch(6)
    regularizer = made("ewc")
    regularizer.consolidate(model)
    for _ in range(1500):
        regularizer.observe(model, inputs_Bd, model(inputs_Bd))
    regularizer.consolidate(model)
    expected = fisher_by_hand(model, inputs_Bd)
    name = "tail.0.weight"
    found = of_state(regularizer, "importance")[name]
    assert float((found - expected[name]).norm() / expected[name].norm()) < 0.06
    # The control: squaring the gradient of the batch's own labels, times B, is another thing.
    loss = functional.cross_entropy(model(inputs_Bd), class_B)
    (gradient,) = torch.autograd.grad(loss, model.get_parameter(name))
    naive = 6 * gradient.square()
    assert float((naive - expected[name]).norm() / expected[name].norm()) > 0.3


def test_mas_of_a_tail_is_a_lower_bound_and_exact_for_one_sample() -> None:
    model, (inputs_Bd, _) = tailed(), batch(8)
    name = "tail.0.weight"
    many, one = made("mas"), made("mas")
    observed(many, model, inputs_Bd)
    observed(one, model, inputs_Bd[:1])
    assert (of_state(many, "importance")[name] <= sensitivity_by_hand(model, inputs_Bd)[name] + 1e-5).all()
    expected = sensitivity_by_hand(model, inputs_Bd[:1])
    torch.testing.assert_close(of_state(one, "importance")[name], expected[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["ewc", "mas"])
def test_importance_is_a_mean_over_samples_however_they_are_batched(kind) -> None:
    model, (inputs_Bd, _) = linear(), batch(12)
    whole, parts = made(kind), made(kind)
    observed(whole, model, inputs_Bd)
    parts.consolidate(model)
    for rows in inputs_Bd.split([1, 4, 7]):
        parts.observe(model, rows, model(rows))
    parts.consolidate(model)
    for name, value in of_state(whole, "importance").items():
        torch.testing.assert_close(of_state(parts, "importance")[name], value)


@pytest.mark.parametrize("kind", ["ewc", "mas"])
def test_old_importance_fades_by_decay_where_something_was_learned(kind) -> None:
    model, (first_Bd, _), (second_Bd, _) = linear(), batch(seed=1), batch(seed=2)
    regularizer, alone = made(kind, decay=0.5), made(kind, decay=0.5)
    observed(regularizer, model, first_Bd)
    before = of_state(regularizer, "importance")
    regularizer.consolidate(model)
    for name, value in of_state(regularizer, "importance").items():
        assert torch.equal(value, before[name])
    observed(regularizer, model, second_Bd)
    observed(alone, model, second_Bd)
    new = of_state(alone, "importance")
    for name, value in of_state(regularizer, "importance").items():
        torch.testing.assert_close(value, 0.5 * before[name] + new[name])


@few
@given(seed=SEED, steps=st.integers(1, 5), rate=st.floats(0.01, 0.5), strength=st.floats(0.1, 10))
def test_si_is_the_path_integral_over_squared_way(seed, steps, rate, strength) -> None:
    model = linear(seed=seed)
    regularizer = made("si", strength=strength)
    start = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    omega = {name: torch.zeros_like(weight) for name, weight in start.items()}
    for number in range(steps):
        inputs_Bd, class_B = batch(seed=seed + number)
        loss = functional.cross_entropy(model(inputs_Bd), class_B)
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        for name, gradient in zip(omega, gradients, strict=True):
            # Plain descent: the step is -rate * gradient.
            omega[name] += rate * gradient.square()
        step(model, [regularizer], (inputs_Bd, class_B), rate=rate)
    regularizer.consolidate(model)
    expected = {
        name: omega[name] / ((weight.detach() - start[name]).square() + XI) for name, weight in model.named_parameters()
    }
    for name, value in of_state(regularizer, "importance").items():
        torch.testing.assert_close(value, expected[name], rtol=2e-3, atol=1e-5)
    ways = nudged(model, seed=seed)
    by_equation = strength * sum(float((expected[name] * ways[name].square()).sum()) for name in ways)
    assert charged(regularizer, model) == pytest.approx(by_equation, rel=1e-2)


def test_the_sum_of_si_over_weights_is_about_how_far_the_loss_fell() -> None:
    model, given_ = linear(), batch(32)
    regularizer = made("si")

    def loss() -> float:
        return float(functional.cross_entropy(model(given_[0]), given_[1]).detach())

    before = loss()
    for _ in range(60):
        step(model, [regularizer], given_, rate=0.02)
    fell = before - loss()
    assert sum(float(omega.sum()) for omega in of_state(regularizer, "omega").values()) == pytest.approx(fell, rel=0.03)


def test_si_counts_a_way_that_raised_the_loss_as_none() -> None:
    model, (inputs_Bd, class_B) = linear(), batch()
    regularizer = made("si")
    functional.cross_entropy(model(inputs_Bd), class_B).backward()
    regularizer.observe(model, inputs_Bd, model(inputs_Bd))
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.1 * weight.grad
    regularizer.moved(model)
    regularizer.consolidate(model)
    assert all(not importance.any() for importance in of_state(regularizer, "importance").values())


@few
@given(seed=SEED, strength=st.floats(0.001, 10))
def test_l2sp_is_half_the_squared_distance_to_the_start_whatever_is_consolidated_later(seed, strength) -> None:
    model = linear(seed=seed)
    regularizer = made("l2sp", strength=strength)
    regularizer.consolidate(model)
    ways = nudged(model, seed=seed)
    regularizer.consolidate(model)
    by_hand = 0.5 * strength * sum(float(way.square().sum()) for way in ways.values())
    assert charged(regularizer, model) == pytest.approx(by_hand, rel=1e-3, abs=1e-6)


def test_l2sp_takes_the_start_by_itself_at_the_first_penalty() -> None:
    model, told = linear(), linear()
    by_itself, consolidated = made("l2sp"), made("l2sp")
    consolidated.consolidate(told)
    assert charged(by_itself, model) == 0
    nudged(model, seed=1)
    nudged(told, seed=1)
    assert charged(by_itself, model) == charged(consolidated, told) > 0


@few
@given(seed=SEED, temperature=st.floats(0.5, 8), strength=st.floats(0.1, 5), new=st.integers(0, 3))
def test_distill_is_the_divergence_over_the_classes_the_teacher_knows(seed, temperature, strength, new) -> None:
    model, (inputs_Bd, _) = linear(seed=seed), batch(seed=99)
    regularizer = made("distill", temperature=temperature, strength=strength)
    regularizer.consolidate(model)
    with torch.no_grad():
        taught_BC = (model(inputs_Bd) / temperature).softmax(1)
    model = grown(model, new) if new else model
    nudged(model, seed=seed)
    with torch.no_grad():
        student_BC = (model(inputs_Bd)[:, :3] / temperature).softmax(1)
    by_hand = 0.0
    for teacher, student in zip(taught_BC.tolist(), student_BC.tolist(), strict=True):
        by_hand += sum(p * math.log(p / q) for p, q in zip(teacher, student, strict=True))
    expected = strength * temperature**2 * by_hand / len(inputs_Bd)
    assert charged(regularizer, model) == pytest.approx(expected, rel=5e-3, abs=1e-5)


def test_the_teacher_neither_drops_out_nor_moves_nor_holds_the_students_weights() -> None:
    model = tailed(dropout=0.9)
    regularizer = made("distill")
    regularizer.consolidate(model)
    model.train()
    inputs_Bd, _ = batch(seed=99)
    logits_BC = model.eval()(inputs_Bd)
    model.train()
    assert float(regularizer.penalty(model, inputs_Bd, logits_BC).detach()) == pytest.approx(0, abs=1e-6)
    nudged(model, seed=3)
    assert float(regularizer.penalty(model, inputs_Bd, logits_BC).detach()) == pytest.approx(0, abs=1e-6)


def test_a_second_look_does_not_count_twice_in_a_batch_norms_statistics() -> None:
    for kind in ("ewc", "mas", "distill"):
        model, (inputs_Bd, _) = tailed().train(), batch(seed=1)
        regularizer = made(kind)
        regularizer.consolidate(model)
        logits_BC = model(inputs_Bd)
        before = model.tail[1].running_mean.clone()
        regularizer.penalty(model, inputs_Bd, logits_BC)
        regularizer.observe(model, inputs_Bd, logits_BC)
        assert torch.equal(model.tail[1].running_mean, before)


@few
@given(seed=SEED, order=st.permutations(KINDS))
def test_the_order_of_penalties_does_not_matter(seed, order) -> None:
    moved = []
    for kinds in (KINDS, order):
        model = tailed(seed=seed)
        regularizers = [made(kind) for kind in kinds]
        for regularizer in regularizers:
            regularizer.consolidate(model)
        for number in range(2):
            step(model, regularizers, batch(seed=seed + number), rate=0.02)
            for regularizer in regularizers:
                regularizer.consolidate(model)
        nudged(model, seed=seed, by=0.05)
        parts = {kind: charged(regularizer, model) for kind, regularizer in zip(kinds, regularizers, strict=True)}
        moved.append((parts, torch.cat([weight.detach().flatten() for weight in model.parameters()])))
    (parts, weights), (other_parts, other_weights) = moved
    torch.testing.assert_close(weights, other_weights, rtol=1e-4, atol=1e-5)
    assert other_parts == pytest.approx(parts, rel=2e-2, abs=1e-5)


@few
@given(seed=SEED)
@pytest.mark.parametrize("kind", KINDS)
def test_penalties_are_never_negative(kind, seed) -> None:
    model = tailed(seed=seed)
    regularizer = made(kind)
    for number in range(3):
        step(model, [regularizer], batch(seed=seed + number))
        regularizer.consolidate(model)
        nudged(model, seed=seed + number, by=0.01 * number)
        assert charged(regularizer, model) >= -1e-6
