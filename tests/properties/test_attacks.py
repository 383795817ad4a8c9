"""One bad client of 20, and four, cannot spoil a model: accuracy lost is within what reliability.md section 4 allows.

Every attack has its control: the same without limits loses more, where the attack does anything at all.
"""

from __future__ import annotations

from functools import cache

import pytest
from tests.attacks import CLIENTS, Attack, Ended, attacked, digits, run

LIMITS = {"norm": 1, "client_share": 0.1, "client_floor": 50, "client_gate": 0.5, "client_labels": 0}
ALLOWED = {1: 0.01, 4: 0.06}
"""Of 20 clients -> points of accuracy."""
DECLARED = [str(digit) for digit in range(10)]


@cache
def ended(attack: Attack, bad: int, *, limited: bool) -> Ended:
    fleet, test = digits()
    return run(attacked(fleet, attack, bad), test, LIMITS if limited else {}, labels=DECLARED)


@cache
def honest() -> float:
    fleet, test = digits()
    return run(fleet, test, {}, labels=DECLARED).accuracy


def lost(attack: Attack, bad: int, *, limited: bool) -> float:
    return honest() - ended(attack, bad, limited=limited).accuracy


@pytest.mark.parametrize("bad", [1, 4])
@pytest.mark.parametrize("attack", ["volume", "shifted volume", "scale", "labels"])
def test_bad_clients_cost_no_more_than_is_allowed_and_without_limits_they_cost_much_more(
    attack: Attack, bad: int
) -> None:
    within, without = lost(attack, bad, limited=True), lost(attack, bad, limited=False)
    assert within <= ALLOWED[bad]
    assert without > max(4 * within, 0.03), "the control: without limits the attack works"


@pytest.mark.parametrize("bad", [1, 4])
@pytest.mark.parametrize("attack", ["shift", "flip"])
def test_wrong_labels_at_no_more_than_its_share_cost_little_with_limits_and_without(attack: Attack, bad: int) -> None:
    assert lost(attack, bad, limited=True) <= ALLOWED[bad]
    assert lost(attack, bad, limited=False) <= ALLOWED[bad]


@pytest.mark.parametrize("attack", ["volume", "shifted volume", "scale", "labels"])
def test_the_refused_are_those_who_attack(attack: Attack) -> None:
    for bad in ALLOWED:
        refused = ended(attack, bad, limited=True).refused
        by_others = sum(sum(reasons.values()) for client, reasons in refused.items() if int(client[1:]) >= bad)
        by_attackers = sum(sum(reasons.values()) for client, reasons in refused.items() if int(client[1:]) < bad)
        assert by_others <= CLIENTS * 0.2, refused
        if attack != "scale":  # of which nothing is refused, but shortened
            assert by_attackers >= 5 * bad


def test_an_honest_even_fleet_loses_nothing_to_limits() -> None:
    fleet, test = digits()
    limited = run(fleet, test, LIMITS, labels=DECLARED)
    assert limited.accuracy >= honest() - 0.005
    assert sum(sum(reasons.values()) for reasons in limited.refused.values()) <= 2
