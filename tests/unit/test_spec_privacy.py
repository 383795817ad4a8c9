"""Tiers of privacy and limits of clients: what each takes, and that no promise is accepted which no code keeps."""

from __future__ import annotations

from typing import Any

import pytest
from tests.unit.test_spec_composition import declared

from everlearn.errors import SpecError
from everlearn.spec.model import Model
from everlearn.spec.plan import Plan, StoredCounts, build_plan
from everlearn.spec.privacy import Privacy
from everlearn.spec.promises import promises


def test_each_tier_fills_in_its_own_options_and_no_others() -> None:
    assert Privacy().model_dump(exclude_none=True) == {"tier": "no_raw", "client_sums": False}
    shared = {"min_samples": 64, "min_clients": 1, "min_class_samples": 32}
    assert Privacy(tier="aggregate").model_dump(exclude_none=True) == {"tier": "aggregate", **shared}
    spent = {"epsilon": 8.0, "delta": 1e-6, "unit": "sample", "noise": 1.0}
    assert Privacy(tier="dp", min_samples=512).model_dump(exclude_none=True) == {
        "tier": "dp",
        **shared,
        "min_samples": 512,
        **spent,
    }


@pytest.mark.parametrize(
    ("tier", "option"),
    [("no_raw", {"min_samples": 2}), ("aggregate", {"epsilon": 1.0}), ("dp", {"client_sums": True})],
)
def test_an_option_of_another_tier_is_refused(tier: Any, option: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(option))} is not an option of {tier}"):
        Privacy(tier=tier, **option)


OWN = {"privacy": {"client_sums": True}}


@pytest.mark.parametrize(
    ("axes", "words"),
    [
        ({"head": {"kind": "linear"}}, "nothing can be subtracted from weights that learned by steps"),
        (
            {"memory": {"kind": "latents"}, "head": {"kind": "ncm"}, "retention": {"features": "latents"}},
            "drops without receipts as it is",
        ),
        ({"adapt": {"kind": "first_session"}}, "adapt first_session fits blocks to samples"),
        ({"memory": {"kind": "statistics", "decay": 0.99}}, "memory.decay 0.99 rounds sums"),
        ({"distill_to": {"backbone": {"source": "hf://timm/y"}}}, "a student learns by steps"),
    ],
)
def test_own_sums_are_refused_where_nothing_could_be_subtracted(axes: dict[str, Any], words: str) -> None:
    declared(**axes)  # which composes without
    with pytest.raises(SpecError, match=words) as raised:
        declared(**axes, **OWN)
    assert "privacy.client_sums" in str(raised.value)


@pytest.mark.parametrize(
    "axes", [{}, {"memory": {"kind": "per_class_statistics"}}, {"task": "multilabel"}], ids=["sums", "split", "tags"]
)
def test_own_sums_are_called_personal_data_wherever_a_reader_looks(axes: dict[str, Any]) -> None:
    model = declared(**axes, **OWN)
    plan = build_plan(
        None,
        model,
        etag="",
        resolved_lock={},
        downloads=(),
        stored=StoredCounts(),
        trunk_cached=True,
        seen_labels=("a", "b"),
        feature_dim=100,
    )
    assert any(line.startswith("personal data: each client's own sums") for line in promises(model.spec))
    assert any("privacy, personal data: each client's own sums" in line for line in plan.recipe)
    assert any("which are personal data" in warning for warning in plan.warnings)
    matrices = 2 if "memory" in axes else 1
    assert plan.cost["disk_bytes_per_client"] == 4 * (matrices * 5050 + 200)
    assert "personal data" not in "".join((*promises(declared(**axes).spec), *plan_of(declared(**axes)).warnings))


def plan_of(after: Model, before: Model | None = None) -> Plan:
    return build_plan(
        before, after, etag="", resolved_lock={}, downloads=(), stored=StoredCounts(samples=9), trunk_cached=True
    )


def test_own_sums_begin_with_an_empty_memory_and_consent_and_end_at_once() -> None:
    off, on = declared(), declared(**OWN)
    begun, ended = plan_of(on, off), plan_of(off, on)
    assert (
        [change.field for change in begun.replaces]
        == ["spec.privacy.client_sums"]
        == [change.field for change in begun.loosens]
    )
    assert (ended.replaces, ended.loosens) == ((), ())
    assert [change.note for change in ended.changes] == ["they are deleted at once, with their keys"]
    tighter = plan_of(declared(privacy={"tier": "aggregate"}), on)
    assert not tighter.replaces
    assert "they are deleted at once, with their keys" in [change.note for change in tighter.changes]
    back = plan_of(off, declared(privacy={"tier": "aggregate"}))
    assert not back.replaces


@pytest.mark.parametrize(
    ("axes", "words"),
    [
        (
            {"head": {"kind": "linear"}, "memory": {"kind": "none"}},
            "weights that learn by steps remember single samples",
        ),
        ({"adapt": {"kind": "first_session"}}, "adapt first_session fits weights to few samples"),
        (
            {"memory": {"kind": "latents"}, "head": {"kind": "ncm"}, "retention": {"features": "latents"}},
            "latents are features of single samples",
        ),
        ({"retention": {"features": "latents"}}, "latents are features of single samples"),
        ({"memory": {"kind": "per_class_statistics"}}, "gives the features of its first samples away"),
        (
            {"distill_to": {"backbone": {"source": "folder:/a", "loader": "timm", "architecture": "resnet10t"}}},
            "a student's weights remember single samples",
        ),
    ],
)
def test_what_remembers_single_samples_is_refused_with_tier_aggregate_and_taken_without(
    axes: dict[str, Any], words: str
) -> None:
    declared(**axes)
    with pytest.raises(SpecError, match=words):
        declared(**axes, privacy={"tier": "aggregate"})


def test_more_clients_than_samples_in_a_step_are_refused() -> None:
    declared(privacy={"tier": "aggregate", "min_clients": 64})
    with pytest.raises(SpecError, match="min_samples: 65 or more"):
        declared(privacy={"tier": "aggregate", "min_clients": 65})
