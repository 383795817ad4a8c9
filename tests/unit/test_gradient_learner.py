from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.gradient_streams import DIM, SCALE, TAIL_DIM, Tail, accuracy, held_out, learner, recipe, stream

from everlearn.errors import DataLossError, InputError, InvalidError, PreconditionError, SpecError
from everlearn.learners.gradient import state
from everlearn.learners.gradient.learner import GradientLearner
from everlearn.learners.gradient.recipe import Recipe
from everlearn.values import FeatureScale

HEADS = ("linear", "cosine")
NONE = {"kind": "none"}


def test_replay_learns_class_after_class_and_without_it_the_first_are_lost() -> None:
    replayed, bare = learner(recipe()), learner(recipe(replay=0))
    for quantised_Bd, labels in stream():
        replayed.learn(quantised_Bd, labels)
        bare.learn(quantised_Bd, labels)
    assert accuracy(replayed) > 0.9
    assert accuracy(bare) < 0.5


def test_a_tail_learns_with_its_head_and_is_served_with_it() -> None:
    module = Tail()
    begun = {name: value.clone() for name, value in module.state_dict().items()}
    model = learner(recipe(), tail=module)
    for quantised_Bd, labels in stream():
        model.learn(quantised_Bd, labels)
    assert accuracy(model, tail=Tail()) > 0.85
    served = model.tail_state()
    assert served is not None
    moved = {name for name, value in served.items() if not torch.equal(value, begun[name])}
    assert moved == {name for name, _ in module.named_parameters()}


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("with_tail", [False, True], ids=["head", "tail"])
@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_what_is_served_scores_as_what_was_learned(head, with_tail, ema) -> None:
    model = learner(recipe(head=head, ema=ema), tail=Tail() if with_tail else None)
    for quantised_Bd, labels in stream(batches=6):
        model.learn(quantised_Bd, labels)
    inputs_Bn = torch.from_numpy(SCALE.restore(held_out()[0]))
    served = model.served.weights()
    with torch.no_grad():
        expected_BC = torch.func.functional_call(model.network, served, (inputs_Bn,)).numpy()
        features_Bd = inputs_Bn
        if with_tail:
            tail = Tail()
            tail.load_state_dict(dict(model.tail_state() or {}))
            features_Bd = tail(inputs_Bn)
    np.testing.assert_allclose(model.head().scores(features_Bd.numpy()), expected_BC, atol=2e-4)


@pytest.mark.parametrize("head", HEADS)
def test_labels_arrive_at_any_time_and_one_only_declared_never_wins(head) -> None:
    model = learner(recipe(head=head), labels=("never", "1"))
    batches = list(stream(batches=12))
    for quantised_Bd, labels in batches:
        model.learn(quantised_Bd, labels)
    served = model.head()
    first = list(dict.fromkeys(label for _, labels in batches for label in labels))
    assert list(served.labels) == ["never", "1", *(label for label in first if label != "1")]
    assert served.scores(SCALE.restore(held_out()[0])).argmax(axis=1).min() > 0
    assert model.samples == sum(len(labels) for _, labels in batches)


def test_no_rows_are_no_step() -> None:
    model = learner(recipe())
    (quantised_Bd, labels), *_ = stream(batches=1)
    model.learn(quantised_Bd, labels)
    before = model.to_bytes()
    report = model.learn(quantised_Bd[:0], [])
    assert report.steps == 0
    assert report.loss is None
    assert model.to_bytes() == before


def test_nothing_learned_is_nothing_to_serve() -> None:
    with pytest.raises(PreconditionError) as caught:
        learner(recipe(), labels=("a",)).head()
    assert caught.value.reason == "EMPTY_MEMORY"


@pytest.mark.parametrize(
    ("rows", "labels", "field"),
    [
        (np.zeros((2, DIM), np.float32), ["a", "b"], "features"),
        (np.zeros((2, DIM + 1), np.int16), ["a", "b"], "features"),
        (np.zeros((2, DIM), np.int16), ["a"], "labels"),
        (np.zeros((2, DIM), np.int16), ["a", ""], "labels[1]"),
    ],
)
def test_a_batch_that_makes_no_sense_is_refused_by_field_and_not_learned(rows, labels, field) -> None:
    model = learner(recipe())
    before = model.to_bytes()
    with pytest.raises(InputError) as caught:
        model.learn(rows, labels)
    assert caught.value.field == field
    assert model.to_bytes() == before


def test_the_first_loss_is_that_of_one_who_knows_nothing_and_figures_are_sane() -> None:
    model = learner(recipe())
    reports = [model.learn(quantised_Bd, labels) for quantised_Bd, labels in stream(at_once=10, batches=8)]
    assert reports[0].first_loss == pytest.approx(math.log(10), rel=1e-5)
    assert reports[0].log_classes == pytest.approx(math.log(10))
    assert reports[0].update_ratio is None
    assert reports[-1].first_loss < reports[0].first_loss
    assert [report.steps for report in reports] == [4] * 8
    assert all(report.gradient_norm > 0 for report in reports)
    assert 1e-4 < reports[-1].update_ratio < 0.5
    assert reports[-1].learning_rate == pytest.approx(0.05 * math.sqrt(96 / 32))


def test_a_head_that_is_solved_is_refused() -> None:
    with pytest.raises(SpecError) as caught:
        Recipe(head="ridge")
    assert caught.value.field == "spec.head.kind"


def test_a_dim_that_is_not_the_scales_is_refused_without_a_tail() -> None:
    with pytest.raises(InvalidError) as caught:
        GradientLearner.create(dim=TAIL_DIM, labels=[], scale=SCALE, recipe=recipe())
    assert caught.value.field == "dim"


class TestStored:
    def test_damaged_bytes_are_data_loss(self) -> None:
        model = learner(recipe())
        (quantised_Bd, labels), *_ = stream(batches=1)
        model.learn(quantised_Bd, labels)
        data = model.to_bytes()
        middle = len(data) // 2
        for broken in (b"", b"EVLGRAD1", data[:-1], data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]):
            with pytest.raises(DataLossError):
                GradientLearner.from_bytes(broken, scale=SCALE, recipe=recipe())

    @pytest.mark.parametrize(
        ("other", "scale", "field"),
        [
            (recipe(head="cosine"), SCALE, "spec.head.kind"),
            (recipe(memory={"kind": "statistics"}), SCALE, "spec.memory.kind"),
            (recipe(), FeatureScale(step_d=np.full(DIM, 0.5, np.float32)), "scale"),
        ],
    )
    def test_another_head_memory_or_scale_is_refused(self, other, scale, field) -> None:
        data = learner(recipe()).to_bytes()
        with pytest.raises(InvalidError) as caught:
            GradientLearner.from_bytes(data, scale=scale, recipe=other)
        assert caught.value.field == field

    def test_other_options_apply_from_there_on(self) -> None:
        model = learner(recipe())
        batches = list(stream(batches=4))
        for quantised_Bd, labels in batches[:3]:
            model.learn(quantised_Bd, labels)
        other = recipe(optimizer={"kind": "adam"}, regularize=({"kind": "ewc"}, {"kind": "l2sp"}), ema=0.9, steps=2)
        loaded = GradientLearner.from_bytes(model.to_bytes(), scale=SCALE, recipe=other)
        report = loaded.learn(*batches[3])
        assert report.steps == 2
        assert loaded.steps == 3 * 4 + 2
        assert report.learning_rate == pytest.approx(1e-3 * math.sqrt(96 / 32))


def test_a_learner_that_comes_from_a_gpu_goes_on_with_draws_from_its_seed() -> None:
    declared = recipe(dropout=0.2)
    model = learner(declared)
    for batch in stream(batches=2):
        model.learn(*batch)
    stored = state.unpack(model.to_bytes())
    of_a_gpu = replace(stored, tensors={**stored.tensors, "drops": torch.zeros(16, dtype=torch.uint8)})
    loaded = GradientLearner.from_bytes(state.pack(of_a_gpu), scale=SCALE, recipe=declared)
    assert torch.equal(loaded.draws.random.get_state(), learner(declared).draws.random.get_state())
    assert loaded.steps == model.steps
    assert loaded.head().weight_dC.tobytes() == model.head().weight_dC.tobytes()
