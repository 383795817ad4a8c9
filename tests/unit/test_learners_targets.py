"""The learner of several targets: what it keeps, what it refuses, and files of heads of earlier releases."""

from __future__ import annotations

import json

import numpy as np
import pytest

from everlearn.errors import DataLossError, InputError, PreconditionError
from everlearn.learners import ClosedForm, Solution, TargetLearner
from everlearn.spec.load import parse
from everlearn.spec.model import ModelSpec
from everlearn.truth import LabelSets, Truth, Values
from everlearn.values import FeatureScale, LinearHead
from everlearn_server.engine.head_file import dump_solution, load_solution

SCALE = FeatureScale(step_d=np.full(3, 0.01, np.float32))
OUTPUTS = [{"name": "litres", "min": 0, "max": 10}]


def spec(task: str, **more: object) -> ModelSpec:
    body = {
        "backbone": {"source": "identity"},
        "input": {"modality": "tensor", "shape": [3], "range": [0, 1]},
        "task": task,
        **({"outputs": OUTPUTS} if task == "regression" else {}),
        **more,
    }
    return parse(json.dumps({"metadata": {"name": "m"}, "spec": body})).spec


def batch(task: str, rows: int = 40) -> tuple[np.ndarray, Truth]:
    quantised = np.random.default_rng(0).integers(0, 100, (rows, 3)).astype(np.int16)
    if task == "regression":
        return quantised, Values((quantised[:, :1] / 20).astype(np.float32))
    return quantised, LabelSets(
        tuple(tuple(name for name, value in zip("abc", row, strict=True) if value > 50) for row in quantised)
    )


@pytest.mark.parametrize("task", ["multilabel", "regression"])
def test_what_was_learned_survives_and_stays_apart_from_what_comes_later(task: str) -> None:
    learner = TargetLearner.of(spec(task), SCALE)
    learner.integrate(*batch(task))
    then = learner.learned()
    again = TargetLearner.of(spec(task), SCALE, learner.to_bytes())
    assert again.to_bytes() == learner.to_bytes()
    assert again.learned().digest() == then.digest()
    learner.integrate(*batch(task))
    assert (then.samples, learner.samples) == (40, 80)
    assert then.digest() != learner.learned().digest()
    head = then.solve().head
    assert head.task == task
    assert list(head.labels) == list(then.labels)


def test_a_value_that_is_linear_in_the_features_is_foreseen() -> None:
    learner = TargetLearner.of(spec("regression"), SCALE)
    quantised, truth = batch("regression", 400)
    learner.integrate(quantised, truth)
    assert isinstance(truth, Values)
    found = learner.learned().solve().head.scores(SCALE.restore(quantised))
    assert np.abs(found - truth.values_BK).max() < 0.01


def test_declared_labels_come_first_and_a_changed_head_solves_the_same_sums() -> None:
    learner = TargetLearner.of(spec("multilabel", labels=["c", "d"]), SCALE)
    learner.integrate(*batch("multilabel"))
    assert list(learner.labels[:2]) == ["c", "d"]
    before = learner.learned().solve().head
    learner.configure(spec("multilabel", labels=["c", "d"], head={"kind": "balanced_ridge"}))
    assert not np.array_equal(before.bias_C, learner.learned().solve().head.bias_C)


@pytest.mark.parametrize("task", ["multilabel", "regression"])
def test_bytes_of_another_model_are_data_loss(task: str) -> None:
    learner = TargetLearner.of(spec(task), SCALE)
    learner.integrate(*batch(task))
    other = FeatureScale(step_d=np.ones(4, np.float32))
    for wrong, scale in ((spec(task), other), (spec("multilabel" if task == "regression" else "regression"), SCALE)):
        with pytest.raises(DataLossError):
            TargetLearner.of(wrong, scale, learner.to_bytes())


def test_truth_of_another_task_is_refused_and_nothing_is_learned() -> None:
    learners = {
        "classification": ClosedForm.of(spec("classification"), SCALE),
        "multilabel": TargetLearner.of(spec("multilabel"), SCALE),
        "regression": TargetLearner.of(spec("regression"), SCALE),
    }
    truths: dict[str, tuple[np.ndarray, Truth]] = {task: batch(task) for task in ("multilabel", "regression")}
    truths["classification"] = (truths["multilabel"][0], ["a"] * 40)
    for task, learner in learners.items():
        for other, (quantised, truth) in truths.items():
            if other != task:
                with pytest.raises(InputError):
                    learner.integrate(quantised, truth)
        assert learner.samples == 0


def test_there_are_no_sums_of_single_labels_to_compare_backbones_by() -> None:
    with pytest.raises(PreconditionError, match="task is multilabel") as caught:
        _ = TargetLearner.of(spec("multilabel"), SCALE).sums
    assert caught.value.reason == "NO_SUMS"


def test_a_head_keeps_its_task_and_one_of_an_earlier_release_is_of_single_labels() -> None:
    head = LinearHead(
        weight_dC=np.ones((3, 2), np.float32),
        bias_C=np.zeros(2, np.float32),
        normalise=False,
        labels=("a", "b"),
        regularization=0.5,
        task="multilabel",
    )
    data = dump_solution(Solution(head=head))
    assert load_solution(data, None).head.task == "multilabel"
    line, _, body = data.partition(b"\n")
    header = json.loads(line)
    del header["task"]
    earlier = load_solution(json.dumps(header).encode() + b"\n" + body, None).head
    assert earlier.task == "classification"
    assert earlier.labels == ("a", "b")
