"""Membership is not told by more than tier `dp` claims, to those who hold every state that was ever persisted.

The same at the size of a thousand shadow heads and more: `python -m tests.faults membership`.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from tests.faults import membership
from tests.faults.membership import Model, audit

from everlearn.privacy.accountant import epsilon_of, rho_of

SAMPLE = Model(unit="sample", epsilon=8, noise=1.0, steps=1)
CLIENT = Model(unit="client", epsilon=8, noise=1.5, steps=6)
HEADS = Model(unit="sample", epsilon=8, noise=3.73, steps=1)


@pytest.mark.parametrize(("fault", "holds"), [("", True), ("a third of the noise", False), ("unbounded", False)])
def test_one_sample_is_told_from_states_by_no_more_than_is_claimed(fault: str, holds: bool) -> None:
    found = audit(SAMPLE, 500, fault=fault)
    assert found.claimed == pytest.approx(epsilon_of(rho_of(1.0), 1e-5), abs=1e-3)
    assert found.holds == holds, found
    assert found.gaussian > 0.4, "an audit that sees nothing proves nothing"


@pytest.mark.parametrize(("fault", "holds"), [("", True), ("charged once", False)])
def test_one_client_is_told_from_all_its_releases_by_no_more_than_is_claimed(fault: str, holds: bool) -> None:
    found = audit(CLIENT, 550, fault=fault)
    assert found.claimed <= 8
    assert found.holds == holds, found
    assert found.gaussian > 1.5


@pytest.mark.parametrize(("fault", "holds"), [("", True), ("a fiftieth of the noise", False)])
def test_one_sample_is_told_from_the_head_by_no_more_than_is_claimed(fault: str, holds: bool) -> None:
    found = audit(HEADS, 200, by_head=True, fault=fault)
    assert found.holds == holds, found


def test_a_client_is_in_as_many_releases_as_its_budget_allows() -> None:
    _, budget = CLIENT.world(member=True)
    _, longer = Model(unit="client", epsilon=8, noise=1.5, steps=9).world(member=True)
    assert budget._releases[membership.CANARY] == 6
    assert longer._releases[membership.CANARY] == 6


def test_intervals_hold_the_rate_and_bounds_follow_from_them() -> None:
    low, high = membership.interval(np.arange(400) < 100)
    assert low < 0.25 < high < 0.36
    assert membership.interval(np.zeros(400, np.bool_))[0] == 0.0
    assert membership.interval(np.ones(400, np.bool_))[1] == 1.0
    assert membership.counted_epsilon((0.5, 0.6), (0.0, 0.01), 0.0) == pytest.approx(math.log(50))
    assert membership.counted_epsilon((0.5, 0.6), (0.4, 0.6), 0.0) == 0.0
