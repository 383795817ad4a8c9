"""Gradient learning on a GPU: what a CPU learns, without a wait in any step, and over to a CPU and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tests.gpu.device import AFTER_STEPS, AFTER_STEPS_BFLOAT16, BFLOAT16, DEVICE, ON_TORCH, no_waiting
from tests.gradient_streams import DIM, HELD_OUT, SCALE, TAIL_DIM, Tail, accuracy, held_out, recipe, stream

from everlearn.errors import PreconditionError
from everlearn.learners.gradient.learner import GradientLearner
from everlearn.learners.gradient.recipe import Recipe

pytestmark = ON_TORCH


def made(declared: Recipe, *, with_tail: bool, device: str = DEVICE) -> GradientLearner:
    return GradientLearner.create(
        dim=TAIL_DIM if with_tail else DIM,
        labels=[],
        scale=SCALE,
        recipe=declared,
        tail=Tail() if with_tail else None,
        device=device,
    )


def logits(model: GradientLearner) -> torch.Tensor:
    with torch.no_grad():
        inputs_Bn = torch.from_numpy(SCALE.restore(held_out()[0])).to(model.device)
        return model.network(inputs_Bn).cpu()


@pytest.mark.parametrize("with_tail", [False, True], ids=["head", "tail"])
def test_a_learner_on_cuda_learns_what_one_on_the_cpu_does(with_tail: bool) -> None:
    models = [made(recipe(ema=0.9), with_tail=with_tail, device=device) for device in ("cpu", DEVICE)]
    for model in models:
        for batch in stream(batches=12):
            model.learn(*batch)
    here_BC, there_BC = map(logits, models)
    tolerance = AFTER_STEPS_BFLOAT16 if with_tail else AFTER_STEPS
    assert float((here_BC - there_BC).abs().mean()) < tolerance * float(here_BC.abs().mean())
    seen = {label for batch in stream(batches=12) for label in batch[1]}
    rows = [row for row, label in enumerate(held_out()[1]) if label in seen]
    known = held_out()[0][rows], [held_out()[1][row] for row in rows]
    tail = Tail() if with_tail else None
    right = [accuracy(model, known, tail=tail) for model in models]
    assert right[1] > right[0] - 0.03, f"of {len(rows)} of {HELD_OUT} held-out digits"


def test_a_tail_computes_in_bfloat16_close_to_what_a_cpu_computes() -> None:
    inputs_Bn = torch.from_numpy(SCALE.restore(held_out()[0]))
    features = []
    for device in ("cpu", DEVICE):
        network = made(recipe(), with_tail=True, device=device).network
        with torch.no_grad():
            features.append(network.features(inputs_Bn.to(device)))
    assert features[1].dtype == torch.float32, "what follows the tail does not"
    difference = float((features[0] - features[1].cpu()).abs().max() / features[0].abs().max())
    assert difference < BFLOAT16
    assert difference > 0 or DEVICE == "cpu"


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"loss": {"kind": "er_ace", "logit_adjustment": 1.0}},
        {"memory": {"kind": "latents", "logits": True}, "loss": {"kind": "der"}},
        {"dropout": 0.2, "mixup": 0.4, "ema": 0.9, "optimizer": {"l1": 1e-4}},
        {"head": "cosine", "soup": 2, "optimizer": {"kind": "adamw", "weight_decay": 0.01}},
        {"optimizer": {"kind": "rmsprop", "momentum": 0.5}, "schedule": {"kind": "cosine", "warmup_steps": 3}},
        {"optimizer": {"kind": "adagrad"}, "freeze_until": 3},
        {"regularize": ({"kind": "l2sp"}, *({"kind": kind, "every": 2} for kind in ("distill", "ewc", "si", "mas")))},
    ],
    ids=["default", "er_ace", "der", "craft", "soup", "rmsprop", "freeze", "regularised"],
)
def test_no_step_waits_for_the_gpu(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model = made(recipe(**options), with_tail=True)
    batches = list(stream(batches=8))
    model.learn(*batches[0])  # what is made at the first step may wait
    taken = model._step

    def watched(rows: Any, competing: Any) -> None:
        with no_waiting():
            taken(rows, competing)

    monkeypatch.setattr(model, "_step", watched)
    for batch in batches[1:]:  # past the step at which a soup takes its first snapshot
        assert model.learn(*batch).steps == 4


@pytest.mark.skipif(DEVICE != "cuda", reason="nothing watches a CPU")
def test_a_step_that_waits_would_be_noticed() -> None:
    # The control of the test above.
    model = made(recipe(), with_tail=False)
    with pytest.raises(RuntimeError, match="synchronizing"), no_waiting():
        model.network.top.weight.sum().item()


@pytest.mark.parametrize("with_tail", [False, True], ids=["head", "tail"])
def test_a_call_whose_steps_are_not_finite_is_taken_back_as_a_whole(with_tail: bool) -> None:
    declared = recipe(optimizer={"kind": "sgd", "learning_rate": 1e38, "clip_norm": 0.0})
    model = made(declared, with_tail=with_tail)
    before: list[bytes] = []

    def teach() -> None:
        for batch in stream(batches=3):
            before.append(model.to_bytes())
            model.learn(*batch)

    with pytest.raises(PreconditionError) as raised:
        teach()
    assert raised.value.reason == "NOT_FINITE"
    assert model.refused == 1
    model.refused = 0
    assert model.to_bytes() == before[-1]


@pytest.mark.parametrize("with_tail", [False, True], ids=["head", "tail"])
def test_a_checkpoint_moves_to_a_cpu_and_back_and_goes_on(with_tail: bool) -> None:
    declared = recipe(ema=0.9, dropout=0.1, optimizer={"kind": "adamw"})
    model = made(declared, with_tail=with_tail)
    batches = list(stream(batches=9))
    for batch in batches[:3]:
        model.learn(*batch)
    for number, device in enumerate(("cpu", DEVICE), start=1):
        before_BC = logits(model)
        model = GradientLearner.from_bytes(
            model.to_bytes(), scale=SCALE, recipe=declared, tail=Tail() if with_tail else None, device=device
        )
        difference = float((logits(model) - before_BC).abs().max() / before_BC.abs().max())
        assert difference < BFLOAT16
        for batch in batches[3 * number : 3 * number + 3]:
            assert model.learn(*batch).steps == 4
    assert model.steps == 36


def test_the_same_seed_gives_the_same_learner_to_the_bit() -> None:
    states = []
    for _ in range(2):
        model = made(recipe(dropout=0.2, ema=0.9), with_tail=True)
        for batch in stream(batches=3):
            model.learn(*batch)
        states.append(logits(model))
    assert np.array_equal(*states)
