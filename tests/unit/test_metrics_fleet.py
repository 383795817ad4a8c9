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
