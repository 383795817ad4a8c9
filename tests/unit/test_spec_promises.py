"""What each tier promises, and does not, in words: in the plan, and what is warned of."""

from __future__ import annotations

from typing import Any

import pytest
from tests.unit.test_spec_composition import declared, warnings_of

from everlearn.spec.plan import StoredCounts, build_plan
from everlearn.spec.promises import promises

LATENTS = {"memory": {"kind": "latents", "ttl_s": 3600}, "head": {"kind": "ncm"}, "retention": {"features": "latents"}}


@pytest.mark.parametrize(
    "axes", [{}, {"privacy": {"tier": "aggregate"}}, LATENTS], ids=["sums", "aggregate", "latents"]
)
def test_every_declaration_says_what_is_promised_and_what_is_not_and_by_whom(axes: dict[str, Any]) -> None:
    model = declared(**axes)
    lines = promises(model.spec)
    kinds = {line.partition(":")[0] for line in lines}
    assert {"tier", "promised", "not promised", "held by"} <= kinds
    plan = build_plan(None, model, etag="", resolved_lock={}, downloads=(), stored=StoredCounts(), trunk_cached=True)
    assert {f"privacy, {line}" for line in lines} <= set(plan.recipe)


def test_an_aggregate_tier_names_its_numbers() -> None:
    privacy = {"tier": "aggregate", "min_samples": 500, "min_clients": 5, "min_class_samples": 40}
    told = "\n".join(promises(declared(privacy=privacy).spec))
    assert "tier: aggregate (min_samples 500, min_clients 5, min_class_samples 40)" in told
    assert "at least 500 samples of at least 5 clients apart" in told
    assert "no class of fewer than 40 samples" in told


def test_latents_are_called_personal_data_with_their_end() -> None:
    told = "\n".join(promises(declared(**LATENTS).spec))
    assert "personal data: up to 1,000 features of single samples are kept, dropped 3,600 s after" in told
    assert "personal data" not in "\n".join(promises(declared().spec))


@pytest.mark.parametrize(
    ("privacy", "words"),
    [
        ({"min_samples": 1024}, ""),
        ({"min_samples": 1025}, "each client keeps up to as many samples"),
        ({"min_clients": 2}, "a client alone is never durable"),
    ],
)
def test_minima_that_clients_will_feel_are_warned_of(privacy: dict[str, Any], words: str) -> None:
    told = warnings_of(declared(privacy={"tier": "aggregate", **privacy}))
    assert words in told
    assert bool(words) == bool(told)
