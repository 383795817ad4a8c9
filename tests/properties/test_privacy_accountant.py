"""The account against another implementation (Google's dp-accounting), and what must hold of any account."""

from __future__ import annotations

import math

import pytest
from dp_accounting import GaussianDpEvent, SelfComposedDpEvent
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant
from hypothesis import given, settings
from hypothesis import strategies as st

from everlearn.errors import InvalidError
from everlearn.privacy.accountant import delta_of, epsilon_of, noise_within, rho_of, rho_within

NOISES = st.floats(0.3, 30)
DELTAS = st.floats(1e-9, 1e-2)


@pytest.mark.parametrize(
    ("noise", "releases", "delta"),
    [(noise, 1, delta) for noise in (0.6, 1.0, 2.0, 5.0) for delta in (1e-5, 1e-8)]
    + [(1.0, 10, 1e-6), (2.0, 10, 1e-6), (5.0, 10, 1e-6), (5.0, 100, 1e-6), (20.0, 1000, 1e-6)],
)
def test_epsilon_is_that_of_dp_accounting_within_a_percent(noise: float, releases: int, delta: float) -> None:
    accountant = PLDAccountant()
    accountant.compose(SelfComposedDpEvent(GaussianDpEvent(noise), releases))
    assert epsilon_of(rho_of(noise, releases=releases), delta) == pytest.approx(accountant.get_epsilon(delta), rel=0.01)


@pytest.mark.parametrize(("noise", "releases"), [(0.6, 1), (1.0, 4), (5.0, 100), (20.0, 1000)])
def test_epsilon_is_below_what_renyi_orders_give_and_near_it(noise: float, releases: int) -> None:
    accountant = RdpAccountant()
    accountant.compose(SelfComposedDpEvent(GaussianDpEvent(noise), releases))
    bound = accountant.get_epsilon(1e-6)
    assert 0.8 * bound < epsilon_of(rho_of(noise, releases=releases), 1e-6) <= bound * 1.0001


def test_the_figures_of_the_specification_come_out() -> None:
    found = {epsilon: noise_within(epsilon, 1e-5) for epsilon in (0.5, 1, 2, 4, 8)}
    assert found == pytest.approx({0.5: 7.03, 1: 3.73, 2: 1.99, 4: 1.08, 8: 0.60}, abs=0.006)


@given(NOISES, DELTAS, st.floats(1.01, 10))
def test_more_noise_fewer_releases_or_more_delta_never_cost_more(noise: float, delta: float, factor: float) -> None:
    rho = rho_of(noise)
    assert epsilon_of(rho_of(noise * factor), delta) <= epsilon_of(rho, delta)
    assert epsilon_of(rho, delta) <= epsilon_of(rho * factor, delta)
    assert epsilon_of(rho, min(delta * factor, 0.5)) <= epsilon_of(rho, delta)


@settings(deadline=None)
@given(st.floats(0.05, 50), DELTAS)
def test_what_may_be_spent_is_exactly_what_reaches_epsilon(epsilon: float, delta: float) -> None:
    rho = rho_within(epsilon, delta)
    assert epsilon_of(rho, delta) == pytest.approx(epsilon, rel=1e-6)
    assert delta_of(rho, epsilon) == pytest.approx(delta, rel=1e-6)


def test_nothing_spent_is_nothing_promised_away_and_everything_is_infinite() -> None:
    assert epsilon_of(0.0, 1e-6) == 0.0
    assert math.isinf(epsilon_of(1e9, 1e-6))


@pytest.mark.parametrize("wrong", [(-1.0, 1e-6), (1.0, 0.0), (1.0, 1.0), (math.nan, 1e-6)])
def test_values_without_a_meaning_are_refused(wrong: tuple[float, float]) -> None:
    with pytest.raises(InvalidError):
        epsilon_of(*wrong)
