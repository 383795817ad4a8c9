"""Limits of one client: what is shortened, what is refused and with which reason, and how a client comes back."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.attacks import SCALE, declared, send, snapshot
from tests.unit.test_spec_composition import declared as of_images

from everlearn.errors import SpecError
from everlearn.heads import head_for
from everlearn.learners.closed_form import ClosedForm
from everlearn.memories.statistics import Statistics
from everlearn.metrics.fleet import FleetTally
from everlearn.metrics.prequential import Prequential
from everlearn.spec.telling import told
from everlearn.values import FeaturesBd
from everlearn_server.engine.batches import Derived, Outcome
from everlearn_server.engine.integration import Integration
from everlearn_server.engine.limits import ClientLimits, NormLimit, longest_vector
from everlearn_server.engine.serving import Snapshot

CENTRES = np.random.default_rng(3).uniform(-1, 1, (4, 64)).astype(np.float32)


def points(label: int, count: int, *, seed: int = 0) -> FeaturesBd:
    noise = np.random.default_rng([label, seed]).normal(0, 0.1, (count, 64))
    return (CENTRES[label] + noise).astype(np.float32)


class Bench:
    """An integration under limits, whose head is renewed when the test says so."""

    def __init__(self, **limits: float) -> None:
        self.learner = ClosedForm(Statistics.create(64, ()), head_for("balanced_ridge"), SCALE)
        self.live: Snapshot | None = None
        self.work = Integration(
            learner=self.learner, scale=SCALE, prequential=Prequential(), streams={}, live=lambda: self.live
        )
        self.work.limit(declared(limits))
        self.sent = 0

    def send(self, client: str, label: int, *, count: int = 10, name: str = "") -> Outcome:
        self.sent += 1
        return send(self.work, client, points(label, count, seed=self.sent), [name or str(label)] * count)

    def renew(self) -> None:
        self.live = snapshot(self.learner, 1)


def reason(outcome: Outcome) -> str:
    return outcome.refusal.reason if outcome.refusal is not None else ""


# -- norm ---------------------------------------------------------------------------------------------------------


def limit(longest: float) -> NormLimit:
    return NormLimit(longest=longest, fleet=FleetTally())


@settings(deadline=None)
@given(st.integers(0, 2**32), st.floats(0.01, 100))
def test_no_vector_is_longer_than_the_limit_and_short_ones_stay_bit_for_bit(seed: int, spread: float) -> None:
    rows_Bd = np.random.default_rng(seed).normal(0, spread, (6, 64)).astype(np.float32)
    batch = Derived(client="a", epoch=1, sequence=1, features_Bd=rows_Bd, labels=())
    shortened_Bd = limit(8.0).admitted(batch, rows_Bd)
    assert (np.linalg.norm(shortened_Bd.astype(np.float64), axis=1) <= 8.0 * (1 + 1e-6)).all()
    short_B = np.linalg.norm(rows_Bd.astype(np.float64), axis=1) < 8.0
    assert np.array_equal(shortened_Bd[short_B], rows_Bd[short_B])


@settings(deadline=None, max_examples=30)
@given(st.permutations(range(12)))
def test_shortened_sums_are_the_same_in_whatever_order_and_batches_samples_come(order: list[int]) -> None:
    rows_Bd = np.random.default_rng(7).normal(0, 3, (12, 64)).astype(np.float32)
    digests = []
    for groups in ([range(12)], [order[:5], order[5:]], [[row] for row in order]):
        bench = Bench(norm=1)
        for rows in groups:
            send(bench.work, "a", rows_Bd[list(rows)], [str(row % 3) for row in rows])
        digests.append(bench.learner.sums.copy())
    assert all(sums.samples == 12 for sums in digests)
    grams = [sums.gram_dd for sums in digests]
    assert np.array_equal(grams[0], grams[1]), "exact integers"
    assert np.array_equal(grams[0], grams[2])


def test_what_was_shortened_is_counted_and_no_declared_value_is() -> None:
    bench = Bench(norm=1)
    bench.send("a", 0)
    assert bench.work.fleet["a"].clipped == 0
    send(bench.work, "a", 10 * points(0, 3), ["0"] * 3)
    assert bench.work.fleet["a"].clipped == 3


def test_the_unit_is_the_probes_peak_however_much_headroom_the_scale_has() -> None:
    assert longest_vector(declared({}), SCALE) == pytest.approx(8.0, rel=1e-3), "values in [-1, 1], 64 of them"
    assert longest_vector(of_images().spec, SCALE) == pytest.approx(2.0, rel=1e-3), "16 times the probes' peak"


# -- share --------------------------------------------------------------------------------------------------------


def test_a_client_beyond_floor_and_share_is_refused_and_learned_again_when_others_have_caught_up() -> None:
    bench = Bench(client_share=0.5, client_floor=20)
    assert [reason(bench.send("loud", 0)) for _ in range(4)] == ["", "", "CLIENT_SHARE", "CLIENT_SHARE"]
    assert bench.learner.samples == 20
    assert [reason(bench.send("quiet", 1)) for _ in range(3)] == [""] * 3
    assert reason(bench.send("loud", 0)) == ""
    assert bench.work.tails["loud"].samples == 30


def test_many_honest_clients_with_a_small_share_never_stop_each_other() -> None:
    bench = Bench(client_share=0.05, client_floor=10)
    for _ in range(6):
        refusals = [reason(bench.send(f"client {n}", n % 4)) for n in range(5)]
        assert refusals == [""] * 5, "five clients of 5 % each: an even part is always allowed"


def test_who_comes_first_does_not_lock_the_others_out() -> None:
    bench = Bench(client_share=0.1, client_floor=20)
    for _ in range(50):
        bench.send("loud", 0)
    assert bench.work.tails["loud"].samples == 20
    assert [reason(bench.send("late", 1)) for _ in range(2)] == ["", ""]


# -- gate ---------------------------------------------------------------------------------------------------------


def gated() -> Bench:
    bench = Bench(client_gate=0.5)
    for _ in range(8):
        for label in range(4):
            bench.send("a", label)
            bench.send("b", label)
        bench.renew()
    return bench


def test_wrong_labels_are_refused_tested_all_the_same_and_a_client_that_mends_is_learned_again() -> None:
    bench = gated()
    learned = bench.learner.samples
    wrong = [reason(bench.send("liar", 0, name="1")) for _ in range(12)]
    assert wrong == [""] * 5 + ["CLIENT_GATE"] * 7, "fifty samples are tested before anything is held against it"
    assert bench.learner.samples == learned + 50
    assert bench.work.fleet["liar"].tested == 120, "those that were refused too"
    mended = [reason(bench.send("liar", label % 4)) for label in range(40)]
    assert mended[0] == "CLIENT_GATE"
    assert mended[-1] == ""
    assert reason(bench.send("a", 0)) == "", "others are not held up"


def test_a_label_that_nobody_else_has_is_not_held_against_its_client() -> None:
    bench = gated()
    for _ in range(12):
        assert reason(bench.send("new", 0, name="something new")) == ""
        bench.renew()


def test_what_is_known_of_clients_survives_a_restart() -> None:
    bench = gated()
    for _ in range(6):
        bench.send("liar", 0, name="1")
    again = Integration(
        learner=bench.learner,
        scale=SCALE,
        prequential=Prequential(),
        streams={},
        live=lambda: bench.live,
        limits=ClientLimits(
            spec=declared({"client_gate": 0.5}),
            fleet=FleetTally.from_dict(json.loads(json.dumps(bench.work.fleet.to_dict()))),
        ),
    )
    assert reason(send(again, "liar", points(0, 4), ["1"] * 4)) == "CLIENT_GATE"
    assert again.fleet["liar"].rejected == 2


# -- labels, quarantine, declarations ---------------------------------------------------------------------------


def test_a_client_brings_as_many_labels_as_it_may_and_uses_those_of_others_freely() -> None:
    bench = Bench(client_labels=2)
    assert [reason(bench.send("a", n, name=f"a{n}")) for n in range(4)] == ["", "", "CLIENT_LABELS", "CLIENT_LABELS"]
    assert reason(bench.send("b", 0, name="b0")) == ""
    assert reason(bench.send("a", 0, name="b0")) == ""
    assert reason(bench.send("a", 0, name="a3")) == "CLIENT_LABELS"
    assert list(bench.learner.labels) == ["a0", "a1", "b0"]


def test_a_client_in_quarantine_is_refused_whatever_it_sends_and_its_sequences_are_spent() -> None:
    bench = Bench()
    bench.send("a", 0)
    bench.work.tails["a"].quarantined = True
    assert reason(bench.send("a", 0)) == "QUARANTINED"
    assert bench.work.tails["a"].integrated == 2
    assert bench.learner.samples == 10
    assert reason(bench.send("b", 0)) == ""


def test_limits_change_in_place() -> None:
    bench = Bench(client_share=0.5, client_floor=10)
    bench.send("a", 0)
    assert reason(bench.send("a", 0)) == "CLIENT_SHARE"
    bench.work.limit(declared({}))
    assert reason(bench.send("a", 0)) == ""


@pytest.mark.parametrize(
    ("axes", "words"),
    [
        ({"privacy": {"tier": "aggregate"}, "limits": {"client_gate": 0.5}}, "limits.client_gate counts what each"),
        ({"task": "multilabel", "limits": {"client_gate": 0.5}}, "limits.client_gate compares shares"),
        (
            {"task": "regression", "outputs": [{"name": "y", "min": 0, "max": 1}], "limits": {"client_labels": 1}},
            "limits.client_labels counts labels",
        ),
    ],
)
def test_a_limit_that_goes_by_what_the_task_has_not_is_refused(axes: dict[str, object], words: str) -> None:
    with pytest.raises(SpecError, match=words):
        of_images(**axes)


def test_a_plan_says_by_what_one_client_may_still_move_the_model() -> None:
    said = "\n".join(told(declared({"norm": 2, "client_share": 0.1, "client_labels": 0})))
    assert "limits of one client: norm 2, client_share 0.1, client_floor 1000, client_labels 0" in said
    assert "it may move the model by wrong labels (limits.client_gate)" in said
    assert "limits of one client: none; it may move the model by the length of its vectors" in "\n".join(
        told(declared({}))
    )
