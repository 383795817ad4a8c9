"""Tasks in a declaration: what each needs, what it takes by default, and what cannot be together."""

from __future__ import annotations

import json
from typing import Any

import pytest

from everlearn.errors import SpecError
from everlearn.spec.changes import ChangeClass, classify
from everlearn.spec.load import dump, parse
from everlearn.spec.model import Model

CELSIUS = {"name": "celsius", "min": -40, "max": 80}
KEEP = {"retention": {"features": "latents"}}
MEASURED = {"task": "regression", "outputs": [CELSIUS]}
BY_STEPS = {"head": {"kind": "linear"}, "memory": {"kind": "latents"}, **KEEP}


def declared(**spec: Any) -> Model:
    body = {
        "backbone": {"source": "identity"},
        "input": {"modality": "tensor", "shape": [3], "range": [0, 1]},
        **spec,
    }
    return parse(json.dumps({"metadata": {"name": "m"}, "spec": body}))


def test_several_labels_are_solved_by_ridge_unless_told_otherwise() -> None:
    assert declared().spec.head.kind == "balanced_ridge"
    assert declared(task="multilabel").spec.head.kind == "ridge"
    assert declared(task="multilabel", head={"regularization": 0.5}).spec.head.kind == "ridge"
    assert declared(task="multilabel", head={"kind": "balanced_ridge"}).spec.head.kind == "balanced_ridge"
    assert declared(task="multilabel", recipe="ranpac").spec.projection is not None
    assert declared(task="regression", outputs=[CELSIUS]).spec.head.kind == "ridge"


@pytest.mark.parametrize(
    ("task", "loss", "rate"), [("multilabel", "binary_cross_entropy", 0.01), ("regression", "huber", 0.002)]
)
def test_by_steps_a_task_has_its_own_loss_and_a_rate_that_fits_it(task: str, loss: str, rate: float) -> None:
    outputs = {"outputs": [CELSIUS]} if task == "regression" else {}
    for axes in ({"recipe": "latent_replay"}, BY_STEPS, {"recipe": "si"}):
        model = declared(task=task, **outputs, **axes)
        assert model.spec.by_gradient
        assert model.spec.loss is not None
        assert model.spec.train is not None
        assert (model.spec.loss.kind, model.spec.train.optimizer.learning_rate) == (loss, rate)
        assert parse(dump(model)) == model
    slow = declared(task=task, **outputs, **BY_STEPS, train={"optimizer": {"learning_rate": 0.5, "momentum": 0}})
    adam = declared(task=task, **outputs, **BY_STEPS, train={"optimizer": {"kind": "adam"}})
    assert slow.spec.train is not None
    assert adam.spec.train is not None
    assert slow.spec.train.optimizer.learning_rate == 0.5
    assert adam.spec.train.optimizer.learning_rate == 0.001


@pytest.mark.parametrize("kind", ["distill", "ewc", "si", "mas", "l2sp"])
@pytest.mark.parametrize(("task", "of_ewc"), [("multilabel", 1.0), ("regression", 0.1)])
def test_every_regulariser_early_stopping_and_soups_are_for_all_tasks(task: str, of_ewc: float, kind: str) -> None:
    outputs = {"outputs": [CELSIUS]} if task == "regression" else {}
    more = {"train": {"early_stop": 20, "soup": 3}}
    model = declared(task=task, **outputs, **BY_STEPS, regularize=[{"kind": kind}], **more)
    of_one = parse(
        json.dumps(
            {
                "metadata": {"name": "m"},
                "spec": {**BY_STEPS, "backbone": {"source": "hf://a/b"}, "regularize": [{"kind": kind}]},
            }
        )
    )
    (given,), (usual,) = model.spec.regularize, of_one.spec.regularize
    assert given.strength == (of_ewc if kind == "ewc" else usual.strength)
    own = declared(task=task, **outputs, **BY_STEPS, regularize=[{"kind": kind, "strength": 7}])
    assert own.spec.regularize[0].strength == 7
    assert parse(dump(model)) == model


def test_outputs_are_values_with_a_range_and_survive_dumping() -> None:
    model = declared(task="regression", outputs=[CELSIUS, {"name": "bar", "min": 0, "max": 10.5}])
    assert [(each.name, each.low, each.high) for each in model.spec.declared_outputs] == [
        ("celsius", -40, 80),
        ("bar", 0, 10.5),
    ]
    assert parse(dump(model)) == model


@pytest.mark.parametrize(
    ("spec", "field", "words"),
    [
        ({"task": "regression"}, "spec.outputs", "is missing"),
        ({"task": "ranking"}, "spec.task", "one of classification, multilabel, regression"),
        ({"outputs": [CELSIUS]}, "spec.outputs", "are of a regression, and the task is classification"),
        ({"task": "multilabel", "outputs": [CELSIUS]}, "spec.outputs", "task is multilabel; leave them out"),
        ({"task": "regression", "outputs": [CELSIUS, CELSIUS]}, "spec.outputs", "given twice"),
        ({"task": "regression", "outputs": [{**CELSIUS, "max": -40}]}, "spec.outputs", "not above min"),
        ({"task": "regression", "outputs": [{**CELSIUS, "max": 1e31}]}, "spec.outputs", "another unit"),
        ({"task": "regression", "outputs": [{"name": "t", "min": 1e9, "max": 1e9 + 1}]}, "spec.outputs", "origin"),
        ({"task": "regression", "outputs": [{"name": "", "min": 0, "max": 1}]}, "spec.outputs", "empty"),
        ({"task": "regression", "outputs": [CELSIUS], "labels": ["a"]}, "spec.labels", "outputs and no labels"),
        ({"task": "multilabel", "recipe": "slda"}, "spec.head", "write kind: ridge or balanced_ridge"),
        ({"task": "multilabel", "head": {"kind": "cosine"}}, "spec.head", "ridge or balanced_ridge or linear"),
        ({"task": "multilabel", "head": {"kind": "linear"}}, "spec", "head ridge is solved from just that"),
        (
            {"task": "regression", "outputs": [CELSIUS], "head": {"kind": "balanced_ridge"}},
            "spec.head",
            "task is regression; write kind: ridge",
        ),
        ({"task": "multilabel", "memory": {"kind": "none"}}, "spec", "write head.kind: linear"),
        ({"task": "multilabel", "memory": {"kind": "per_class_statistics"}}, "spec.memory", "write kind: statistics"),
        ({"task": "multilabel", "memory": {"kind": "latents"}, **KEEP}, "spec", "write head.kind: linear"),
        ({"task": "multilabel", "adapt": {"kind": "last_blocks"}}, "spec", "write head.kind: linear"),
        ({"task": "multilabel", "recipe": "er_ace"}, "spec", "write loss.kind: binary_cross_entropy"),
        ({"task": "multilabel", **BY_STEPS, "loss": {"kind": "cosine"}}, "spec", "loss.kind: binary_cross_entropy"),
        ({**MEASURED, **BY_STEPS, "loss": {"kind": "cosine"}}, "spec", "leaves their size open"),
        ({**MEASURED, **BY_STEPS, "loss": {"kind": "cosine"}}, "spec", "write loss.kind: huber or mse"),
        ({**MEASURED, **BY_STEPS, "loss": {"kind": "binary_cross_entropy"}}, "spec", "fits probabilities"),
        ({"task": "multilabel", **BY_STEPS, "loss": {"kind": "mse"}}, "spec", "may lie below 0 and above 1"),
        ({"task": "multilabel", "recipe": "der"}, "spec", "write loss.kind: binary_cross_entropy"),
        ({"task": "multilabel", "head": {"kind": "ncm"}}, "spec.head", "write kind: ridge"),
        ({**MEASURED, **BY_STEPS, "memory": {"kind": "latents", "logits": True}}, "spec", "logits are for loss der"),
        ({"task": "multilabel", "memory": {"decay": 0.9}}, "spec.memory", "exact for good"),
        ({"task": "multilabel", "adapt": {"kind": "first_session"}}, "spec.adapt", "write kind: frozen"),
    ],
)
def test_contradictions_are_refused_by_field(spec: dict[str, Any], field: str, words: str) -> None:
    with pytest.raises(SpecError) as caught:
        declared(**spec)
    path, message = caught.value.problems[0]
    assert path.startswith(field)
    assert words in message


def test_another_task_or_another_range_starts_a_new_memory() -> None:
    before = declared(task="regression", outputs=[CELSIUS])
    for after, field in (
        (declared(task="regression", outputs=[{**CELSIUS, "max": 90}]), "spec.outputs"),
        (declared(task="multilabel"), "spec.task"),
    ):
        changed = {change.field: change.klass for change in classify(before, after)}
        assert changed[field] is ChangeClass.REPLACE
