"""What is subtracted has never been there: bit for bit, for every learner that says so."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.faults.erasure_run import KINDS, Model, run

from everlearn.contribution import Contribution
from everlearn.errors import DataLossError, InvalidError, PreconditionError
from everlearn.learners import ClosedForm
from everlearn.memories.base import Origin
from everlearn.memories.latents import Latents
from everlearn.spec.model import Memory as Declared
from everlearn.truth import LabelSets, Values


def test_sequences_of_adding_and_erasing_end_where_the_erased_were_never_seen() -> None:
    found = run(200, seed=0)
    assert found.sequences == 200
    assert found.erasures > 200
    assert found.differing == []


@pytest.mark.parametrize("fault", ["floats", "a batch forgotten"])
@pytest.mark.parametrize("kind", KINDS)
def test_control_a_subtraction_that_is_not_what_was_learned_is_caught(kind: str, fault: str) -> None:
    found = run(12, seed=1, kinds=(kind,), fault=fault)
    assert len(found.differing) > 6


def test_a_head_after_an_erasure_is_the_head_of_those_who_never_met_the_client() -> None:
    for kind in KINDS:
        model = Model(kind, dim=6)
        alice, bob = model.batch(np.random.default_rng(3)), model.batch(np.random.default_rng(4))
        both, without = model.learner(), model.learner()
        for each in (bob, alice):
            both.integrate(each.quantised_Bd, each.truth)
        without.integrate(bob.quantised_Bd, bob.truth)
        part = both.alone()
        part.integrate(alice.quantised_Bd, alice.truth)
        both.subtract(part)
        left, never = both.learned().solve().head, without.learned().solve().head
        known = [left.labels.index(label) for label in never.labels]  # of others the label stays, and nothing else
        assert np.array_equal(left.weight_dC[:, known], never.weight_dC)
        assert np.array_equal(left.bias_C[known], never.bias_C)


def test_what_was_never_learned_cannot_be_subtracted_and_nothing_changes() -> None:
    for kind in KINDS:
        model = Model(kind, dim=6)
        learner = model.learner()
        known = model.batch(np.random.default_rng(5))
        learner.integrate(known.quantised_Bd, known.truth)
        before = learner.to_bytes()
        part = learner.alone()
        for seed in range(6, 12):
            other = model.batch(np.random.default_rng(seed))
            part.integrate(other.quantised_Bd, other.truth)
        with pytest.raises(InvalidError):
            learner.subtract(part)
        assert learner.to_bytes() == before


def test_a_learner_that_decays_or_keeps_rows_refuses_and_says_why() -> None:
    decaying = Model("statistics", dim=6, decay=0.9).learner()
    assert "decay" in decaying.inseparable_because
    with pytest.raises(PreconditionError, match="decay") as raised:
        decaying.alone()
    assert raised.value.reason == "NOT_SEPARABLE"
    kept = Model("latents", dim=6).learner()
    assert "a part" in kept.inseparable_because
    with pytest.raises(PreconditionError, match="cannot be subtracted"):
        kept.subtract(kept)


@pytest.mark.parametrize("selection", ["reservoir", "herding"])
def test_rows_of_a_client_are_dropped_and_its_name_with_them(selection: str) -> None:
    declared = Declared(kind="latents", capacity=40, selection=selection)
    memory = Latents.create(4, [], declared)
    random = np.random.default_rng(0)
    for turn in range(20):
        rows = random.integers(-900, 900, (4, 4)).astype(np.int16)
        memory.integrate(rows, ["a", "b", "a", "b"], origin=Origin(client=("ann", "bob")[turn % 2], time_s=float(turn)))
    before = memory.kept
    gone = memory.forget_client("ann")
    assert 0 < gone < before
    assert memory.kept == before - gone
    assert b"ann" not in memory.to_bytes()
    assert b"bob" in memory.to_bytes()
    assert memory.forget_client("ann") == 0
    again = Latents.from_bytes(memory.to_bytes())
    assert again.to_bytes() == memory.to_bytes()


TRUTHS = st.sampled_from(["labels", "sets", "values"])


@settings(max_examples=60, deadline=None)
@given(kind=TRUTHS, samples=st.integers(0, 9), dim=st.integers(1, 40), seed=st.integers(0, 99))
def test_a_contribution_comes_back_as_it_was(kind: str, samples: int, dim: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    rows = random.integers(-2047, 2048, (samples, dim)).astype(np.int16)
    names = [f"klasse {n} ä" for n in random.integers(0, 5, samples)]
    truth = {
        "labels": tuple(names),
        "sets": LabelSets(tuple((name, "x") if n % 2 else () for n, name in enumerate(names))),
        "values": Values(random.normal(size=(samples, 3)).astype(np.float32)),
    }[kind]
    made = Contribution(quantised_Bd=rows, truth=truth)
    back = Contribution.parse(made.packed())
    assert np.array_equal(back.quantised_Bd, rows)
    assert back.quantised_Bd.dtype == np.int16
    assert back.canonical == made.canonical
    assert type(back.truth) is type(truth)
    for cut in (made.packed()[:-1], b"\x02" + made.packed()[1:], b""):
        with pytest.raises(DataLossError):
            Contribution.parse(cut)


def test_twelve_bit_features_take_less_than_two_bytes_each() -> None:
    scale = Model("statistics", dim=1280).scale
    features = np.abs(np.random.default_rng(0).normal(0, 0.4, (16, 1280))).astype(np.float32)
    packed = Contribution(quantised_Bd=scale.quantise(features), truth=("a",) * 16).packed()
    assert len(packed) < 0.8 * 2 * 16 * 1280


def test_closed_form_is_what_the_server_makes() -> None:
    assert isinstance(Model("per_class_statistics", dim=4).learner(), ClosedForm)
