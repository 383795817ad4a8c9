"""Steps follow torch.optim, rates follow their formulas, and both are there again after growth and after a stop."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.gradient_streams import DIM, SCALE, Tail, learner, recipe, stream
from torch.nn import functional

from everlearn.errors import InvalidError
from everlearn.learners.gradient import optimizers
from everlearn.learners.gradient.learner import GradientLearner
from everlearn.learners.gradient.network import LENGTH, CosineTop, LinearTop, Network
from everlearn.learners.gradient.schedules import RISE, START, share_of_rate
from everlearn.spec.recipe import Optimizer, Schedule

few = settings(max_examples=40, deadline=None)
KINDS = {
    "sgd": ({}, lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True)),
    "plain": ({"kind": "sgd", "momentum": 0.0}, lambda p: torch.optim.SGD(p, lr=0.05)),
    "heavy": ({"kind": "sgd", "nesterov": False}, lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9)),
    "adam": ({"kind": "adam"}, lambda p: torch.optim.Adam(p, lr=1e-3)),
    "adamw": ({"kind": "adamw", "learning_rate": 0.01}, lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0)),
    "rmsprop": ({"kind": "rmsprop", "momentum": 0.5}, lambda p: torch.optim.RMSprop(p, lr=1e-3, momentum=0.5)),
    "adagrad": ({"kind": "adagrad"}, lambda p: torch.optim.Adagrad(p, lr=0.01)),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("clip_norm", [0.0, 0.5])
def test_a_learner_without_replay_walks_as_torch_does_by_hand(kind, clip_norm) -> None:
    options, by_torch = KINDS[kind]
    declared = {"clip_norm": clip_norm, "scale_with_batch": "no", **options}
    model = learner(recipe(optimizer=declared, replay=0, steps=2), labels=tuple("0123456789"))
    weight, bias = (torch.zeros(10, DIM, requires_grad=True), torch.zeros(10, requires_grad=True))
    optimizer = by_torch([weight, bias])
    for quantised_Bd, labels in stream(at_once=10, batches=6):
        model.learn(quantised_Bd, labels)
        inputs_Bd = LENGTH * functional.normalize(torch.from_numpy(SCALE.restore(quantised_Bd)))
        class_B = torch.tensor([int(each) for each in labels])
        for _ in range(2):
            optimizer.zero_grad()
            functional.cross_entropy(inputs_Bd @ weight.T + bias, class_B).backward()
            if clip_norm:
                torch.nn.utils.clip_grad_norm_([weight, bias], clip_norm)
            optimizer.step()
    torch.testing.assert_close(model.network.top.weight.detach(), weight.detach(), rtol=1e-3, atol=2e-5)
    torch.testing.assert_close(model.network.top.bias.detach(), bias.detach(), rtol=1e-3, atol=2e-5)


class Layers(Tail):
    """A tail that knows its two blocks."""

    cut_blocks = ("0", "1")

    def depth_of(self, parameter: str) -> int:
        return int(parameter[0])


def test_each_block_learns_at_a_share_of_the_one_above_and_biases_do_not_decay() -> None:
    network = Network(LinearTop(24), Layers())
    declared = Optimizer(layer_decay=0.5, weight_decay=0.1)
    optimizer = optimizers.optimizer_for(declared, network)
    rate = optimizers.set_rate(optimizer, declared, share=0.5, rows=128)
    assert rate == pytest.approx(0.05 * 0.5 * 2)
    found = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            (name,) = (name for name, each in network.named_parameters() if each is parameter)
            found[name] = (group["lr"] / rate, group["weight_decay"])
    assert found == {
        "top.weight": (1.0, 0.1),
        "top.bias": (1.0, 0.0),
        # What follows the last block would be one step below the head.
        "tail.1.1.weight": (0.25, 0.1),
        "tail.1.1.bias": (0.25, 0.0),
        "tail.0.0.weight": (0.125, 0.1),
        "tail.0.0.bias": (0.125, 0.0),
        "tail.0.1.weight": (0.125, 0.0),  # of a norm
        "tail.0.1.bias": (0.125, 0.0),
    }


@pytest.mark.parametrize(("way", "factor"), [("no", 1.0), ("linear", 4.0), ("sqrt", 2.0)])
def test_the_rate_follows_the_rows_as_declared(way, factor) -> None:
    network = Network(LinearTop(4))
    declared = Optimizer(scale_with_batch=way)
    optimizer = optimizers.optimizer_for(declared, network)
    assert optimizers.set_rate(optimizer, declared, share=1.0, rows=128) == pytest.approx(0.05 * factor)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("top", [LinearTop, CosineTop])
def test_a_grown_head_keeps_what_the_optimizer_knew_and_new_rows_begin_with_nothing(kind, top) -> None:
    network = Network(top(3))
    declared = Optimizer.model_validate(KINDS[kind][0])
    network.grow(torch.ones(2, 3))
    optimizer = optimizers.optimizer_for(declared, network)
    for _, parameter in network.moving():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    before = {name: value.clone() for name, value in optimizers.state_of(optimizer, network).items()}
    optimizers.follow(optimizer, network.grow(torch.ones(1, 3)))
    after = optimizers.state_of(optimizer, network)
    assert after.keys() == before.keys()
    for name, value in after.items():
        kept = before[name]
        assert torch.equal(value[: len(kept)] if value.ndim else value, kept)
        if value.ndim:
            assert len(value) == 3
            assert not value[2:].any()
    for _, parameter in network.moving():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert all(parameter.isfinite().all() for _, parameter in network.moving())


def test_weight_decay_and_l1_draw_weights_towards_zero() -> None:
    sizes = []
    for options in ({}, {"weight_decay": 0.02}, {"l1": 0.003}):
        model = learner(recipe(optimizer=options))
        for quantised_Bd, labels in stream(at_once=10, batches=10):
            model.learn(quantised_Bd, labels)
        sizes.append(float(model.network.top.weight.detach().abs().sum()))
    assert sizes[1] < 0.9 * sizes[0]
    assert sizes[2] < 0.9 * sizes[0]


def test_l1_is_its_strength_times_the_sum_of_weights() -> None:
    model = learner(recipe(optimizer={"l1": 0.25}), tail=Tail(), labels=("a",))
    with torch.no_grad():
        model.network.top.weight += 0.5
    weights = [each for _, each in model.network.moving() if each.ndim > 1]
    expected = 0.25 * sum(float(weight.detach().abs().sum()) for weight in weights)
    assert float(model.stepper._with_l1(torch.zeros(())).detach()) == pytest.approx(expected, rel=1e-4)


@few
@given(step=st.integers(0, 300), warm=st.integers(0, 20), total=st.integers(30, 200), floor=st.floats(0, 0.3))
def test_schedules_are_their_formulas(step, warm, total, floor) -> None:
    done = min(max(step - warm, 0) / (total - warm), 1)
    after = {
        "constant": 1.0,
        "cosine": (1 + math.cos(math.pi * done)) / 2,
        "linear": 1 - done,
        "inverse_sqrt": math.sqrt(max(warm, 1) / (max(warm, 1) + max(step - warm, 0))),
        "step": 0.5 ** (max(step - warm, 0) // 7),
    }
    for kind, wanted in after.items():
        options = {"total_steps": total} if kind in ("cosine", "linear") else {}
        options |= {"every": 7, "factor": 0.5} if kind == "step" else {}
        schedule = Schedule.model_validate({"kind": kind, "warmup_steps": warm, "floor": floor, **options})
        expected = (step + 1) / warm if step < warm else max(wanted, floor)
        assert share_of_rate(schedule, step) == pytest.approx(expected)


def test_one_cycle_rises_and_falls_as_torchs() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 1.0, total_steps=101, pct_start=RISE, div_factor=1 / START, final_div_factor=1e9
    )
    schedule = Schedule(kind="one_cycle", total_steps=100)
    rates = []
    for _ in range(100):
        rates.append(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()
    # torch's peak is one step before ours: it counts from 0 to total - 1.
    np.testing.assert_allclose([share_of_rate(schedule, step) for step in range(100)], rates, atol=0.06)
    assert share_of_rate(schedule, 0) == pytest.approx(START)
    assert max(range(100), key=lambda step: share_of_rate(schedule, step)) == 30
    assert share_of_rate(schedule, 10_000) == 0


def test_the_rate_is_remembered_a_later_update_goes_on_where_the_last_one_ended() -> None:
    declared = recipe(schedule={"kind": "linear", "total_steps": 40}, optimizer={"scale_with_batch": "no"})
    model = learner(declared)
    rates = []
    for number, (quantised_Bd, labels) in enumerate(stream(batches=6)):
        if number == 3:
            model = GradientLearner.from_bytes(model.to_bytes(), scale=SCALE, recipe=declared)
        rates.append(model.learn(quantised_Bd, labels).learning_rate)
    assert rates == pytest.approx([0.05 * (1 - (4 * number + 3) / 40) for number in range(6)])


def test_blocks_frozen_from_the_bottom_stay_and_those_above_learn() -> None:
    module = Layers()
    begun = {name: value.clone() for name, value in module.named_parameters()}
    model = learner(recipe(freeze_blocks=1), tail=module)
    for quantised_Bd, labels in stream(batches=4):
        model.learn(quantised_Bd, labels)
    moved = {name for name, value in module.named_parameters() if not torch.equal(value, begun[name])}
    assert moved == {"1.1.weight", "1.1.bias"}


def test_what_was_learned_before_blocks_were_frozen_is_kept_and_thawed_blocks_learn_again() -> None:
    batches = list(stream(batches=9))
    model = learner(recipe(ema=0.9, soup=2), tail=Layers())
    for quantised_Bd, labels in batches[:3]:
        model.learn(quantised_Bd, labels)
    learned = {name: value.clone() for name, value in model.network.tail.named_parameters()}
    for freeze, part in ((1, batches[3:6]), (0, batches[6:])):
        declared = recipe(ema=0.9, soup=2, freeze_blocks=freeze)
        model = GradientLearner.from_bytes(model.to_bytes(), scale=SCALE, recipe=declared, tail=Layers(seed=3))
        for quantised_Bd, labels in part:
            model.learn(quantised_Bd, labels)
        same = {name for name, value in model.network.tail.named_parameters() if torch.equal(value, learned[name])}
        assert same == ({"0.0.weight", "0.0.bias", "0.1.weight", "0.1.bias"} if freeze else set())


@pytest.mark.parametrize(("tail", "blocks"), [(None, 1), (Tail(), 1), (Layers(), 2)])
def test_more_frozen_blocks_than_learn_are_refused(tail, blocks) -> None:
    with pytest.raises(InvalidError, match="freeze fewer") as caught:
        learner(recipe(freeze_blocks=blocks), tail=tail)
    assert caught.value.field == "spec.train.freeze_blocks"


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_the_tail_waits_for_its_head_to_know_something(kind) -> None:
    # Decay and penalties would move it, too.
    optimizer = {"kind": kind, "weight_decay": 0.1, "l1": 1e-4}
    module = Layers()
    begun = {name: value.clone() for name, value in module.named_parameters()}
    model = learner(recipe(freeze_until=6, optimizer=optimizer, regularize=({"kind": "l2sp"},)), tail=module)
    batches = list(stream(batches=2))
    model.learn(*batches[0])
    assert all(torch.equal(value, begun[name]) for name, value in module.named_parameters())
    model.learn(*batches[1])
    assert not any(torch.equal(value, begun[name]) for name, value in module.named_parameters())
