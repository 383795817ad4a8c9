"""Axes of a recipe compose, or are refused with the field to change."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from everlearn.errors import MovingReferenceError, SpecError
from everlearn.spec import presets
from everlearn.spec.load import parse
from everlearn.spec.lock import require_pinned
from everlearn.spec.model import Model
from everlearn.spec.plan import StoredCounts, build_plan

COMMIT = "0123456789abcdef0123456789abcdef01234567"
INPUT = {"size": 96, "resize": "crop", "crop_pct": 0.875, "interpolation": "bicubic"}
LEVELS = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}


def declared(**axes: Any) -> Model:
    spec = {
        "backbone": {"source": "hf://timm/x", "revision": COMMIT, "architecture": "x"},
        "input": {**INPUT, **LEVELS},
        **axes,
    }
    return parse(yaml.safe_dump({"metadata": {"name": "shelf"}, "spec": spec}))


def warnings_of(model: Model) -> str:
    plan = build_plan(None, model, etag="", resolved_lock={}, downloads=(), stored=StoredCounts(), trunk_cached=True)
    return "\n".join(plan.warnings)


@pytest.mark.parametrize("name", presets.PRESETS)
def test_every_preset_expands_to_axes_that_compose(name: str) -> None:
    model = declared(recipe=name)
    assert model.spec.recipe == name
    assert presets.PRESETS[name].title
    assert presets.PRESETS[name].advice


@pytest.mark.parametrize("name", [name for name, preset in presets.PRESETS.items() if preset.is_weak])
def test_regularisers_alone_are_warned_of_with_the_measured_cost(name: str) -> None:
    assert "21 to 26 %" in warnings_of(declared(recipe=name))


def test_the_default_recipe_has_nothing_to_warn_of() -> None:
    assert warnings_of(declared()) == ""


def test_what_is_declared_wins_over_the_recipe_and_the_rest_of_it_stays() -> None:
    spec = declared(recipe="der", memory={"kind": "latents", "logits": True, "capacity": 50}).spec
    assert spec.memory.capacity == 50
    assert spec.loss is not None
    assert spec.loss.kind == "der"
    assert spec.retention.features == "latents"


def test_a_recipe_of_steps_whose_head_is_replaced_by_a_solved_one_takes_no_steps() -> None:
    spec = declared(recipe="er_ace", head={"kind": "ncm"}).spec
    assert spec.memory.kind == "latents"
    assert spec.loss is None
    assert spec.train is None


@pytest.mark.parametrize(
    ("axes", "words"),
    [
        ({"memory": {"kind": "latents"}}, "retention.features: latents"),
        ({"memory": {"kind": "none"}}, "head.kind: linear"),
        ({"memory": {"kind": "latents"}, "retention": {"features": "latents"}}, "linear, cosine or ncm"),
        ({"adapt": {"kind": "last_blocks"}}, "head.kind: linear"),
        ({"adapt": {"kind": "first_session"}, "head": {"kind": "linear"}}, "adapt.kind: last_blocks"),
        ({"adapt": {"kind": "full"}, "head": {"kind": "linear"}}, "never kept"),
        ({"adapt": {"kind": "last_blocks"}, "projection": {"dim": 100}, "head": {"kind": "linear"}}, "leave one"),
        ({"regularize": [{"kind": "ewc"}]}, "leave it out"),
        ({"train": {"steps": 2}}, "head.kind: linear"),
        ({"head": {"kind": "linear"}, "loss": {"kind": "der"}}, "logits: true"),
        ({"head": {"kind": "linear"}, "train": {"augment": {"flip": 0.5}}}, "leave it out"),
        ({"head": {"kind": "linear"}, "train": {"stochastic_depth": 0.1}}, "leave it out"),
        ({"head": {"kind": "linear"}, "train": {"compile": True}}, "leave it out"),
        ({"head": {"kind": "linear"}, "train": {"freeze_blocks": 1}}, "leave it out"),
        ({"head": {"kind": "linear"}, "train": {"freeze_until": 1}}, "leave it out"),
        ({"head": {"kind": "linear"}, "memory": {"kind": "per_class_statistics"}}, "latents, statistics or none"),
        ({"adapt": {"kind": "frozen", "blocks": 2}}, "not an option of frozen"),
        ({"memory": {"capacity": 5}}, "not an option of statistics"),
    ],
)
def test_axes_that_do_not_compose_are_refused_with_what_would(axes: dict[str, Any], words: str) -> None:
    with pytest.raises(SpecError) as raised:
        declared(**axes)
    assert words in str(raised.value)


@pytest.mark.parametrize("name", presets.PRESETS)
def test_a_plan_tells_what_each_recipe_expands_to_and_keeps(name: str) -> None:
    model = declared(recipe=name)
    plan = build_plan(None, model, etag="", resolved_lock={}, downloads=(), stored=StoredCounts(), trunk_cached=True)
    assert plan.recipe[0].startswith(f"{name}: ")
    assert any(line.startswith(f"memory: {model.spec.memory.kind}") for line in plan.recipe)
    (kept,) = [line for line in plan.recipe if line.startswith("kept on disk: ")]
    assert "raw inputs never" in kept
    assert ("feature vectors of single samples" in kept) == (model.spec.memory.kind == "latents")


STUDENT = {"backbone": {"source": "hf://timm/small", "revision": COMMIT, "architecture": "test_resnet"}}


def test_a_student_is_declared_with_all_its_options_filled_in() -> None:
    student = declared(distill_to=STUDENT).spec.distill_to
    assert student is not None
    assert (student.optimizer.kind, student.optimizer.learning_rate, student.min_agreement) == ("adamw", 1e-3, 0.8)


@pytest.mark.parametrize(
    ("axes", "words"),
    [
        ({"adapt": {"kind": "first_session"}}, "imitates the features of a frozen backbone"),
        ({"projection": {"dim": 64}}, "there is a projection"),
        ({"head": {"kind": "ncm"}}, "needs a head over plain features"),
        ({"recipe": "latent_replay", "retention": {"features": "latents"}}, "needs a head over plain features"),
        ({"task": "multilabel"}, "is for classification of images"),
        ({"distill_to": {"backbone": {**STUDENT["backbone"], "loader": "transformers"}}}, "write timm"),
    ],
)
def test_what_a_student_cannot_imitate_is_refused(axes: dict[str, Any], words: str) -> None:
    with pytest.raises(SpecError, match=words):
        declared(**{"distill_to": STUDENT, **axes})


def test_a_student_is_pinned_as_the_model_is() -> None:
    moving = {"backbone": {**STUDENT["backbone"], "revision": "main"}}
    with pytest.raises(MovingReferenceError, match="40-hex") as caught:
        require_pinned(declared(distill_to=moving))
    assert caught.value.field == "spec.distill_to.backbone.revision"


def test_blocks_that_move_take_adamw_and_heads_alone_sgd_unless_declared() -> None:
    keeps = {"memory": {"kind": "latents"}, "retention": {"features": "latents"}, "head": {"kind": "linear"}}
    moving = {"adapt": {"kind": "last_blocks"}}
    found = [
        declared(**keeps),
        declared(**keeps, **moving),
        declared(recipe="latent_replay", **moving),
        declared(**keeps, **moving, train={"optimizer": {"kind": "sgd"}}),
        declared(**keeps, **moving, train={"optimizer": {"learning_rate": 0.01}}),
    ]
    kinds = [model.spec.train.optimizer.kind for model in found if model.spec.train is not None]
    assert kinds == ["sgd", "adamw", "adamw", "sgd", "adamw"]
