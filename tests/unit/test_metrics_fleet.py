"""The record of clients: what it compares, that it stays small, and that it comes back as it was."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from everlearn.errors import DataLossError
from everlearn.metrics.fleet import MAX_CLIENTS, MAX_LABELS, WINDOW, FleetTally

KNOWN = ("cat", "dog", "owl")


def scores(winners: list[int]) -> np.ndarray:
    return np.eye(3, dtype=np.float32)[winners]


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from("abc"),
            st.lists(st.tuples(st.sampled_from([*KNOWN, "unknown"]), st.integers(0, 2)), min_size=1, max_size=30),
        ),
        max_size=60,
    )
)
def test_sums_over_clients_are_those_of_the_clients_and_all_of_it_survives_json(
    batches: list[tuple[str, list[tuple[str, int]]]],
) -> None:
    fleet = FleetTally()
    for client, rows in batches:
        fleet.count(client, [label for label, _ in rows], scores([winner for _, winner in rows]), KNOWN)
        assert fleet[client].tested < 2 * WINDOW
    again = FleetTally.from_dict(json.loads(json.dumps(fleet.to_dict())))
    assert again.to_dict() == fleet.to_dict()
    for client in "abc":
        assert again.compare(client, least=1) == fleet.compare(client, least=1)
        assert "unknown" not in fleet[client].labels
    for client in "abc":
        fleet.forget(client)
    assert fleet.compare("a", least=0).tested == 0
    assert fleet.to_dict()["clients"] == {}


def test_fifty_times_as_many_samples_weigh_no_more() -> None:
    fleet = FleetTally()
    for _ in range(500):
        fleet.count("loud", ["cat"] * 20, scores([1] * 20), KNOWN)
    for client in ("b", "c"):
        fleet.count(client, ["cat"] * 300, scores([0] * 300), KNOWN)
    assert fleet.compare("b", least=50).expected > 0.4, "one loud liar of three"


def test_old_tests_fade() -> None:
    fleet = FleetTally()
    fleet.count("a", ["cat"] * 399, scores([1] * 399), KNOWN)
    for _ in range(40):
        fleet.count("a", ["cat"] * 20, scores([0] * 20), KNOWN)
    tally = fleet["a"]
    assert tally.correct / tally.tested > 0.8


def test_the_record_stays_small_whatever_names_clients_and_labels_have() -> None:
    fleet = FleetTally()
    for client in range(MAX_CLIENTS + 10):
        fleet.note(str(client), rejected=1)
    assert len(fleet.to_dict()["clients"]) == MAX_CLIENTS
    labels = [f"label {n}" for n in range(300)]
    fleet.count("a", labels, np.eye(300, dtype=np.float32), labels)
    assert len(fleet["a"].labels) == MAX_LABELS


@pytest.mark.parametrize(
    "spoilt",
    [
        {"version": 9, "clients": {}},
        {"version": 1, "clients": {"a": {"clipped": 0, "rejected": 0, "brought": 0, "labels": {"cat": [1, 2]}}}},
        {"version": 1, "clients": {"a": {}}},
        {"version": 1},
    ],
)
def test_what_is_no_such_record_is_refused(spoilt: dict[str, object]) -> None:
    with pytest.raises(DataLossError, match="not a record of clients"):
        FleetTally.from_dict(spoilt)


def test_a_record_of_an_earlier_release_begins_empty() -> None:
    assert FleetTally.from_dict(None).to_dict()["clients"] == {}


def test_how_unlike_its_samples_were_fades_and_comes_back_from_what_is_stored() -> None:
    fleet = FleetTally()
    fleet.watch("dirty", np.array([0.5, 3.0, 500.0, np.nan], np.float32))
    fleet.watch("clean", np.array([0.25, 0.75], np.float32))
    dirty, clean = fleet["dirty"], fleet["clean"]
    # What is absurd counts for ten, and what is no number is unknown too.
    assert (dirty.watched, dirty.unknown, dirty.novelty) == (4, 3, 0.5 + 3 + 10 + 10)
    assert (clean.watched, clean.unknown, clean.novelty) == (2, 0, 1.0)
    again = FleetTally.from_dict(fleet.to_dict())
    assert again.to_dict() == fleet.to_dict()
    assert again["dirty"].unknown == 3
    for _ in range(40):
        fleet.watch("dirty", np.full(50, 0.5, np.float32))
    assert fleet["dirty"].watched < 2 * WINDOW
    assert fleet["dirty"].novelty / fleet["dirty"].watched == pytest.approx(0.5, abs=0.05)
    fleet.forget_labels()
    assert fleet["dirty"].watched == 0


def test_a_record_of_an_earlier_release_tells_no_novelty_and_one_that_does_not_add_up_is_refused() -> None:
    fleet = FleetTally()
    fleet.note("a", rejected=1)
    assert "novelty" not in fleet.to_dict()["clients"]["a"]
    fleet.watch("a", np.array([2.0], np.float32))
    broken = fleet.to_dict()
    broken["clients"]["a"]["novelty"] = [1, 2, 3.0]
    with pytest.raises(DataLossError, match="more unknown than watched"):
        FleetTally.from_dict(broken)
