"""What every regulariser must do, whatever file it lives in: each kind in everlearn/regularizers is picked up."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple, get_args

import pytest
import torch
from tests.trained_models import NoWaiting, batch, grown, linear, step, tailed

import everlearn.regularizers
from everlearn import plugins
from everlearn.errors import InputError, PreconditionError, SpecError
from everlearn.regularizers import regularizer_for
from everlearn.regularizers.base import Regularizer
from everlearn.spec.recipe import Regularizer as Declared
from everlearn.values import Task

KINDS = plugins.kinds(everlearn.regularizers)
MODELS = {"linear": linear, "tail": tailed}
_WAITING_CALLS = {"item", "cpu", "tolist", "numpy", "nonzero", "synchronize", "is_nonzero", "equal", "allclose"}


class Kind(NamedTuple):
    """A regulariser of one task."""

    name: str
    task: Task = "classification"


EVERY = [Kind(name, task) for name in KINDS for task in get_args(Task)]


def made(kind: Kind, **options: object) -> Regularizer:
    return regularizer_for(Declared.model_validate({"kind": kind.name, **options}), kind.task)


def learned(kind: Kind, model: torch.nn.Module, *, steps: int = 4, classes: int = 3, **options: object) -> Regularizer:
    """Of a few steps, consolidated before and after."""
    regularizer = made(kind, **options)
    regularizer.consolidate(model)
    for seed in range(steps):
        step(model, [regularizer], batch(classes=classes, seed=seed))
    regularizer.consolidate(model)
    return regularizer


def penalty_of(regularizer: Regularizer, model: torch.nn.Module, *, seed: int = 99) -> torch.Tensor:
    inputs_Bd, _ = batch(seed=seed)
    return regularizer.penalty(model, inputs_Bd, model(inputs_Bd))


def nudged(model: torch.nn.Module, *, by: float = 0.1, seed: int = 5) -> None:
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight += by * torch.randn(weight.shape, generator=random)


def gradient_norm(penalty: torch.Tensor, model: torch.nn.Module) -> float:
    weights = list(model.parameters())
    gradients = torch.autograd.grad(penalty, weights, allow_unused=True)
    return max((float(g.abs().max()) for g in gradients if g is not None), default=0.0)


def test_the_five_documented_kinds_are_there() -> None:
    assert KINDS == ["distill", "ewc", "l2sp", "mas", "si"]


def test_an_unknown_kind_is_refused_by_field_with_the_known_ones() -> None:
    with pytest.raises(SpecError, match="distill, ewc, l2sp, mas, si") as caught:
        regularizer_for(SimpleNamespace(kind="ogd"))
    assert caught.value.field == "spec.regularize.kind"


def test_the_refusal_of_waiting_finds_what_it_looks_for() -> None:
    value = torch.ones(2)
    for waits in (lambda: value.sum().item(), lambda: bool(value.sum() > 1), value.nonzero):
        with pytest.raises(AssertionError, match="waits"), NoWaiting():
            waits()
    with NoWaiting():
        (value + 1).sum()


@pytest.mark.parametrize("model_of", MODELS.values(), ids=MODELS.keys())
@pytest.mark.parametrize("kind", EVERY, ids=lambda kind: f"{kind.name}-{kind.task}")
class TestEveryRegularizer:
    def test_penalty_and_gradient_are_zero_at_the_weights_just_consolidated(self, kind, model_of) -> None:
        model = model_of()
        regularizer = made(kind)
        # Later consolidations of l2sp keep the start, hence the first one for all.
        regularizer.consolidate(model)
        if kind.name != "l2sp":
            regularizer = learned(kind, model)
        penalty = penalty_of(regularizer, model)
        assert float(penalty.detach()) == pytest.approx(0, abs=1e-7)
        if penalty.requires_grad:
            assert gradient_norm(penalty, model) < 1e-6

    def test_penalty_is_nothing_before_anything_was_consolidated(self, kind, model_of) -> None:
        penalty = penalty_of(made(kind), model_of())
        assert penalty.shape == ()
        assert penalty.dtype == torch.float32
        assert float(penalty.detach()) == 0

    def test_penalty_and_gradient_are_positive_away_from_there_and_pull_back(self, kind, model_of) -> None:
        model = model_of()
        regularizer = learned(kind, model)
        nudged(model)
        before = penalty_of(regularizer, model)
        assert float(before.detach()) > 0
        weights = list(model.parameters())
        pulls = torch.autograd.grad(before, weights, allow_unused=True)
        size = sum(float(pull.square().sum()) for pull in pulls if pull is not None) ** 0.5
        with torch.no_grad():
            for weight, pull in zip(weights, pulls, strict=True):
                if pull is not None:
                    weight -= 1e-3 * pull / size
        assert float(penalty_of(regularizer, model).detach()) < float(before.detach())

    def test_penalty_grows_in_proportion_to_strength(self, kind, model_of) -> None:
        weak, strong = model_of(), model_of()
        # The steps themselves are taken without a pull: the first penalty would bend them apart.
        weak_penalty = learned(kind, weak, strength=0.25)
        strong_penalty = made(kind, strength=1.0)
        strong_penalty.restore(weak_penalty.state())
        strong.load_state_dict(weak.state_dict())
        nudged(weak)
        nudged(strong)
        assert float(penalty_of(strong_penalty, strong).detach()) == pytest.approx(
            4 * float(penalty_of(weak_penalty, weak).detach()), rel=1e-5
        )

    def test_state_is_bit_identical_in_the_middle_and_goes_on_alike(self, kind, model_of) -> None:
        model = model_of()
        first = learned(kind, model)
        step(model, [first], batch(seed=20))
        second = made(kind)
        second.restore(first.state())
        assert_same(first, second)
        twin = model_of()
        twin.load_state_dict(model.state_dict())
        for regularizer, moving in ((first, model), (second, twin)):
            step(moving, [regularizer], batch(seed=21))
            regularizer.consolidate(moving)
            nudged(moving)
        assert_same(first, second)
        assert torch.equal(penalty_of(first, model), penalty_of(second, twin))

    def test_state_is_a_copy(self, kind, model_of) -> None:
        model = model_of()
        regularizer = learned(kind, model)
        state = regularizer.state()
        before = {name: tensor.clone() for name, tensor in state.items()}
        step(model, [regularizer], batch(seed=20))
        regularizer.consolidate(model)
        assert all(torch.equal(state[name], before[name]) for name in before)
        assert not any(tensor.requires_grad for tensor in state.values())

    def test_a_state_of_something_else_is_refused(self, kind, model_of) -> None:
        with pytest.raises(InputError, match="momentum") as caught:
            made(kind).restore({**made(kind).state(), "momentum/weight": torch.ones(2)})
        assert caught.value.field == "state"

    def test_survives_growth_and_leaves_new_rows_free_at_first(self, kind, model_of) -> None:
        model = model_of()
        regularizer = learned(kind, model)
        step(model, [regularizer], batch(seed=20))
        nudged(model)
        before = penalty_of(regularizer, model).detach()
        model = grown(model, 2)
        inputs_Bd, _ = batch(seed=99)
        penalty = regularizer.penalty(model, inputs_Bd, model(inputs_Bd))
        torch.testing.assert_close(penalty.detach(), before)
        head = list(model.parameters())[-2]
        (gradient,) = torch.autograd.grad(penalty, head)
        assert float(gradient[:3].abs().max()) > 0
        assert not gradient[3:].any()
        for seed in range(3):
            step(model, [regularizer], batch(classes=5, seed=seed))
        regularizer.consolidate(model)
        step(model, [regularizer], batch(classes=5, seed=3))
        with torch.no_grad():
            head[4] += 1.0
        inputs_Bd, _ = batch(seed=99)
        penalty = regularizer.penalty(model, inputs_Bd, model(inputs_Bd))
        (gradient,) = torch.autograd.grad(penalty, head)
        assert gradient[3:].any()

    def test_a_head_that_lost_rows_is_refused(self, kind, model_of) -> None:
        regularizer = learned(kind, model_of())
        smaller = model_of(classes=2)
        with pytest.raises(PreconditionError, match="grow") as caught:
            penalty_of(regularizer, smaller)
        assert caught.value.reason == "REGULARIZER_STATE"

    def test_never_waits_for_the_device(self, kind, model_of) -> None:
        model = model_of()
        regularizer = learned(kind, model)
        nudged(model)
        with NoWaiting():
            step(model, [regularizer], batch(seed=20))
            regularizer.consolidate(model)
            step(model, [regularizer], batch(seed=21))

    def test_leaves_the_model_and_the_global_generator_alone(self, kind, model_of) -> None:
        model = model_of()
        regularizer = learned(kind, model)
        model.train()
        inputs_Bd, class_B = batch(seed=30)
        logits_BC = model(inputs_Bd)
        torch.nn.functional.cross_entropy(logits_BC, class_B).backward()
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        gradients = [weight.grad.clone() for weight in model.parameters()]
        random = torch.get_rng_state()
        regularizer.penalty(model, inputs_Bd, logits_BC)
        regularizer.observe(model, inputs_Bd, logits_BC)
        regularizer.moved(model)
        regularizer.consolidate(model)
        assert torch.equal(torch.get_rng_state(), random)
        assert model.training
        assert all(not module._forward_hooks for module in model.modules())
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, before[name]), name
        for weight, gradient in zip(model.parameters(), gradients, strict=True):
            assert torch.equal(weight.grad, gradient)

    def test_frozen_weights_cost_nothing_and_an_empty_batch_is_none(self, kind, model_of) -> None:
        model = model_of()
        regularizer = learned(kind, model)
        nudged(model)
        for weight in model.parameters():
            weight.requires_grad_(False)
        empty_Bd = torch.empty(0, 5)
        penalty = regularizer.penalty(model, empty_Bd, model(empty_Bd))
        regularizer.observe(model, empty_Bd, model(empty_Bd))
        assert float(penalty.detach()) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_no_source_calls_what_waits_for_the_device(kind: str) -> None:
    folder = Path(inspect.getfile(everlearn.regularizers)).parent
    files = [folder / f"{kind}.py", *folder.glob("_*.py")]
    for path in files:
        for function in ast.walk(ast.parse(path.read_text("utf-8"))):
            # `restore` and `take_up` run once, at the start.
            if isinstance(function, ast.FunctionDef) and function.name not in ("restore", "take_up"):
                called = {
                    node.func.attr
                    for node in ast.walk(function)
                    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
                }
                assert not called & _WAITING_CALLS, f"{path.name}:{function.name}"


def assert_same(first: Regularizer, second: Regularizer) -> None:
    one, two = first.state(), second.state()
    assert one.keys() == two.keys()
    for name in one:
        assert torch.equal(one[name], two[name]), name
        assert one[name].dtype == two[name].dtype
