"""Tier `dp` in a declaration: what plan warns of, what a budget means in words, what it is not composed with."""

from __future__ import annotations

import re
from typing import Any

import pytest
from tests.unit.test_spec_composition import declared

from everlearn.errors import SpecError
from everlearn.privacy.accountant import epsilon_of, rho_of
from everlearn.spec import dp
from everlearn.spec.promises import promises

LABELS = ("a", "b", "c", "d")


def spec_of(**privacy: Any) -> Any:
    return declared(labels=LABELS, privacy={"tier": "dp", **privacy}).spec


def test_plan_warns_of_too_few_samples_with_a_figure_that_keeps_its_word() -> None:
    spec = spec_of(min_samples=64, noise=1.0)
    [warning] = dp.warnings(spec, 512)
    found = re.search(r"below some ([\d,]+) samples.*and ([\d,]+) are enough", warning)
    assert found is not None
    many, few = (int(part.replace(",", "")) for part in found.groups())
    assert many == dp.samples_wanted(spec, 512)
    assert few < many
    assert dp.warnings(spec_of(min_samples=few, noise=1.0), 512) == []
    assert dp.warnings(spec, None) == []


def test_less_noise_and_fewer_features_want_fewer_samples() -> None:
    spec = spec_of(min_samples=64)
    assert dp.samples_wanted(spec, 64) < dp.samples_wanted(spec, 512)
    assert dp.samples_wanted(spec_of(min_samples=64, noise=0.8), 512) < dp.samples_wanted(spec, 512)
    assert dp.samples_wanted(spec_of(min_samples=4096), 512) < dp.samples_wanted(spec, 512)


def test_the_steps_that_a_client_is_said_to_have_are_those_of_its_budget() -> None:
    told = " ".join(promises(spec_of(unit="client", noise=2.0)))
    steps = int(re.findall(r"it has ([\d,]+) such steps", told)[0].replace(",", ""))
    assert epsilon_of(rho_of(2.0, releases=steps), 1e-6) <= 8 < epsilon_of(rho_of(2.0, releases=steps + 1), 1e-6)
    assert "not promised: that nobody sees who sends samples" in told


@pytest.mark.parametrize(
    ("axes", "words"),
    [
        ({"privacy": {"tier": "dp"}}, "needs declared labels"),
        ({"labels": LABELS, "privacy": {"tier": "dp", "noise": 0.1}}, "write noise: 0.653 or more"),
        ({"labels": LABELS, "privacy": {"tier": "dp"}, "limits": {"client_gate": 0.5}}, "no accuracy is counted"),
        (
            {"labels": LABELS, "privacy": {"tier": "dp"}, "gate": {"max_drop": 0.1}},
            "gate.max_drop goes by what samples",
        ),
        (
            {"labels": LABELS, "privacy": {"tier": "dp"}, "memory": {"kind": "per_class_statistics"}},
            "keeps more than sums",
        ),
        ({"labels": LABELS, "privacy": {"tier": "dp", "min_clients": 100}}, "write min_samples: 100 or more"),
    ],
)
def test_what_the_noise_does_not_cover_is_refused(axes: dict[str, Any], words: str) -> None:
    with pytest.raises(SpecError, match=words):
        declared(**axes)
