"""Weights that are served instead of the last ones, and when steps cease."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.gradient_streams import accuracy, learner, recipe, stream

from everlearn.learners.gradient.averages import LEAST_ROWS, SNAPSHOT_EVERY, Ema, Soup
from everlearn.learners.gradient.stopping import WINDOW_BATCHES, Patience

few = settings(max_examples=30, deadline=None)


@few
@given(values=st.lists(st.floats(-5, 5), min_size=2, max_size=30), decay=st.floats(0.1, 0.999))
def test_a_running_mean_is_the_formula_of_tensorflow_and_forgets_where_it_began(values, decay) -> None:
    ema, mean = Ema(decay), values[0]
    for step, value in enumerate(values):
        ema.update({"weight": torch.full((2, 1), value), "gain": torch.tensor(value)})
        share = min(decay, (1 + step) / (10 + step))
        mean = share * mean + (1 - share) * value
    assert float(ema.weights["weight"][0]) == pytest.approx(mean, abs=1e-4)
    assert float(ema.weights["gain"]) == pytest.approx(mean, abs=1e-4)


def test_a_new_row_begins_as_it_is_and_old_ones_keep_their_mean() -> None:
    ema = Ema(0.9)
    for _ in range(3):
        ema.update({"weight": torch.zeros(1, 2)})
    ema.update({"weight": torch.ones(2, 2)})
    share = 4 / 13
    torch.testing.assert_close(ema.weights["weight"], torch.tensor([[1 - share] * 2, [1.0, 1.0]]))


def test_a_soup_is_the_mean_of_the_last_snapshots_each_row_over_those_that_have_it() -> None:
    soup = Soup(2)
    for rows, value in ((1, 9.0), (1, 1.0), (2, 3.0)):
        soup.add({"weight": torch.full((rows, 2), value), "gain": torch.tensor(value)})
    torch.testing.assert_close(soup.weights["weight"], torch.tensor([[2.0, 2.0], [3.0, 3.0]]))
    assert float(soup.weights["gain"]) == 2
    assert not soup.covers({"weight": torch.zeros(3, 2), "gain": torch.tensor(0.0)})


def test_a_soup_is_served_only_while_it_has_proved_not_to_be_worse() -> None:
    soup = Soup(2)
    soup.compare(9, 9, LEAST_ROWS - 1)
    assert not soup.is_served
    soup.compare(9, 9, 10)
    assert soup.is_served
    soup.compare(3, 9, 10)
    assert not soup.is_served
    # What was long ago counts less.
    for _ in range(60):
        soup.compare(10, 9, 32)
    assert soup.is_served


def test_a_soup_of_weights_that_go_to_and_fro_is_served_and_better() -> None:
    with_soup, without = (learner(recipe(soup=soup, optimizer={"learning_rate": 0.5}, replay=0)) for soup in (4, 0))
    # Twice: while it still learns fast, the last weights are better, and they are served.
    for quantised_Bd, labels in [*stream(at_once=10)] * 2:
        report = with_soup.learn(quantised_Bd, labels)
        without.learn(quantised_Bd, labels)
        assert report.tested == len(labels)
    assert with_soup.steps >= 4 * SNAPSHOT_EVERY
    assert with_soup.served.soup.is_served
    assert torch.equal(with_soup.network.top.weight, without.network.top.weight)
    assert not torch.equal(torch.from_numpy(with_soup.head().weight_dC), torch.from_numpy(without.head().weight_dC))
    assert accuracy(with_soup) > accuracy(without)


def test_a_running_mean_is_served_and_does_not_change_what_is_learned() -> None:
    averaged, plain = learner(recipe(ema=0.95)), learner(recipe())
    for quantised_Bd, labels in stream(at_once=10):
        averaged.learn(quantised_Bd, labels)
        plain.learn(quantised_Bd, labels)
    assert torch.equal(averaged.network.top.weight, plain.network.top.weight)
    assert (averaged.head().weight_dC != plain.head().weight_dC).any()
    assert accuracy(averaged) >= accuracy(plain) - 0.01


def test_steps_cease_when_they_no_longer_help_and_go_on_when_accuracy_falls() -> None:
    patience = Patience(3)
    assert not any(patience.rests(hits, 10) for hits in (1, 5, 9, 9))
    rested = [patience.rests(9, 10) for _ in range(WINDOW_BATCHES + 3)]
    assert rested[-1]
    assert rested == sorted(rested)
    assert not patience.rests(0, 10)
    assert not any(Patience(None).rests(0, 10) for _ in range(50))


def test_an_error_that_trembles_rests_until_it_is_worse_than_chance() -> None:
    patience, random = Patience(5), np.random.default_rng(0)
    errors = 1 + 0.1 * random.normal(size=200)
    rested = [patience.rests(-16 * error, 16) for error in errors]
    assert np.mean(rested[100:]) > 0.5
    assert not patience.rests(-16 * 9, 16)
    again = Patience(5)
    again.restore(patience.numbers())
    assert [again.rests(-1, 16) for _ in range(30)] == [patience.rests(-1, 16) for _ in range(30)]


def test_a_learner_that_rests_takes_no_step_but_remembers_and_a_new_class_wakes_it() -> None:
    model = learner(recipe(early_stop=1))
    batches = list(stream(at_once=5, classes=5))
    model.learn(*batches[0])
    reports = [model.learn(*batches[0]) for _ in range(25)]
    assert reports[-1].steps == 0
    assert reports[-1].loss is None
    before = model.network.top.weight.detach().clone()
    seen = model.memory.seen
    assert model.learn(*batches[0]).steps == 0
    assert torch.equal(model.network.top.weight, before)
    assert model.memory.seen == seen + len(batches[0][1])
    quantised_Bd, labels = list(stream(at_once=5))[-1]
    assert model.learn(quantised_Bd, labels).steps == 4
