"""What is refused leaves no trace: every byte of the learner is as it was."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.gradient_streams import Tail, learner, recipe, stream

from everlearn.errors import OverloadedError, PreconditionError
from everlearn.learners.gradient.learner import GradientLearner

EVERYTHING = {
    "head": "cosine",
    "optimizer": {"kind": "adam"},
    "regularize": (*({"kind": kind, "every": 3} for kind in ("distill", "ewc", "si", "mas")), {"kind": "l2sp"}),
    "loss": {"logit_adjustment": 1.0},
    "ema": 0.9,
    "soup": 2,
    "early_stop": 5,
    "dropout": 0.2,
    "mixup": 0.4,
}
RECIPES = {"plain": {}, "everything": EVERYTHING}


def without_refusals(model: GradientLearner) -> bytes:
    refused, model.refused = model.refused, 0
    data = model.to_bytes()
    model.refused = refused
    return data


@pytest.fixture(params=RECIPES)
def begun(request) -> GradientLearner:
    model = learner(recipe(**RECIPES[request.param]), tail=Tail())
    for quantised_Bd, labels in stream(batches=7):
        model.learn(quantised_Bd, labels)
    return model


def next_batch() -> tuple[np.ndarray, list[str]]:
    """With a class that the first seven batches do not have."""
    return list(stream(batches=20))[19]


def test_the_control_a_step_that_is_taken_moves_weights(begun) -> None:
    before = without_refusals(begun)
    begun.learn(*next_batch())
    assert without_refusals(begun) != before


@pytest.mark.parametrize("at", ["loss", "gradient"])
@pytest.mark.parametrize("in_step", [0, 2])
def test_a_loss_or_gradient_that_is_not_finite_takes_the_whole_call_back(begun, monkeypatch, at, in_step) -> None:
    before, taken = without_refusals(begun), 0
    judged = begun.stepper.loss

    class Bad(torch.autograd.Function):
        @staticmethod
        def forward(context, loss):
            return loss.clone()

        @staticmethod
        def backward(context, gradient):
            return gradient * torch.inf

    def loss(scored):
        nonlocal taken
        taken += 1
        if taken <= in_step:
            return judged(scored)
        return Bad.apply(judged(scored)) if at == "gradient" else judged(scored) * torch.nan

    loss.needs_present = False
    monkeypatch.setattr(begun.stepper, "loss", loss)
    with pytest.raises(PreconditionError, match=at) as caught:
        begun.learn(*next_batch())
    assert caught.value.reason == "NOT_FINITE"
    assert caught.value.field == "spec.train.optimizer.learning_rate"
    assert taken == in_step + 1
    assert begun.refused == 1
    assert without_refusals(begun) == before


def test_a_rate_far_too_large_is_refused_before_anybody_sees_its_weights() -> None:
    model = learner(recipe(optimizer={"learning_rate": 1e30, "clip_norm": 0.0}), tail=Tail())
    (first, labels), *_ = stream(batches=1)
    before = without_refusals(model)
    with pytest.raises(PreconditionError, match="learning_rate"):
        model.learn(first, labels)
    assert without_refusals(model) == before


def test_what_the_memory_refuses_is_not_learned(begun, monkeypatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OverloadedError("full", retry_after_s=1)

    before = without_refusals(begun)
    monkeypatch.setattr(begun.memory, "integrate", full)
    with pytest.raises(OverloadedError):
        begun.learn(*next_batch())
    assert begun.refused == 0
    assert without_refusals(begun) == before


def test_after_a_refusal_it_goes_on_as_one_who_never_met_it(begun, monkeypatch) -> None:
    twin = GradientLearner.from_bytes(begun.to_bytes(), scale=begun.scale, recipe=begun.recipe, tail=Tail())
    with monkeypatch.context() as patch:
        patch.setattr(type(begun.stepper.loss), "__call__", lambda _, scored: scored.logits_BS.sum() * torch.nan)
        with pytest.raises(PreconditionError):
            begun.learn(*next_batch())
    for each in (begun, twin):
        each.learn(*next_batch())
    assert without_refusals(begun) == without_refusals(twin)
