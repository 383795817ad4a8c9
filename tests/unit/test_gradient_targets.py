"""Several labels, and values, by gradient steps: as good as their peers, and stored in mid-stream to the same bits."""

from __future__ import annotations

import os
import signal
from functools import cache
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_diabetes, make_multilabel_classification
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.metrics import f1_score, r2_score
from sklearn.multiclass import OneVsRestClassifier
from tests.gradient_streams import SCALE as DIGIT_SCALE
from tests.gradient_streams import TAIL_DIM, Tail, digits

from everlearn.errors import InputError, InvalidError
from everlearn.export.parity import head_parity
from everlearn.learners.gradient.child import recipe_of
from everlearn.learners.gradient.learner import GradientLearner
from everlearn.learners.trainer import Trainer
from everlearn.memories.base import Origin
from everlearn.spec.model import ModelSpec
from everlearn.truth import LabelSets, Truth, Values
from everlearn.values import FeatureScale, LinearHead, QuantisedBd

OUTPUTS = [{"name": "progression", "min": 0, "max": 400}, {"name": "pressure", "min": 50, "max": 150}]
TRAINED = 300
TASKS = ("multilabel", "regression")


def spec(task: str, **more: Any) -> ModelSpec:
    body = {
        "backbone": {"source": "identity"},
        "input": {"modality": "tensor", "shape": [9], "range": [[-1, 1]]},
        "task": task,
        "head": {"kind": "linear"},
        "memory": {"kind": "latents", "capacity": 200},
        "retention": {"features": "latents"},
        **({"outputs": OUTPUTS} if task == "regression" else {}),
        **more,
    }
    return ModelSpec.model_validate(body, strict=False)


def learner(declared: ModelSpec, dim: int) -> GradientLearner:
    return GradientLearner.create(dim=dim, labels=declared.labels, scale=scale(dim), recipe=recipe_of(declared))


def scale(dim: int) -> FeatureScale:
    """Of values in -1 to 1."""
    return FeatureScale(step_d=np.full(dim, 1 / 2000, np.float32))


@cache
def patients() -> tuple[QuantisedBd, np.ndarray]:
    """scikit-learn's diabetes data, pressure to be foreseen beside progression; as the identity would have it."""
    found = load_diabetes(scaled=False)
    order = np.random.default_rng(0).permutation(len(found.target))
    pressure = found.feature_names.index("bp")
    values = np.delete(found.data, pressure, axis=1)[order]
    low, high = values.min(axis=0), values.max(axis=0)
    truth = np.stack([found.target, found.data[:, pressure]], axis=1)[order]
    return scale(9).quantise(((values - low) / (high - low) * 2 - 1).astype(np.float32)), truth.astype(np.float32)


@cache
def counts() -> tuple[QuantisedBd, np.ndarray]:
    """Word counts of documents of several topics, or none."""
    values, has = make_multilabel_classification(1000, 9, n_classes=4, random_state=0)
    return scale(9).quantise((values / values.max() * 2 - 1).astype(np.float32)), has.astype(bool)


def sets(has: np.ndarray, names: str = "abcd") -> LabelSets:
    return LabelSets(tuple(tuple(names[column] for column in np.flatnonzero(row)) for row in has))


def part(task: str, rows: slice) -> tuple[QuantisedBd, Truth]:
    quantised, truth = patients() if task == "regression" else counts()
    return quantised[rows], Values(truth[rows]) if task == "regression" else sets(truth[rows])


def teach(model: GradientLearner | Trainer, task: str, start: int, stop: int, rows: int = 16) -> None:
    for at in range(start, stop, rows):
        quantised, truth = part(task, slice(at, min(at + rows, stop)))
        take = model.integrate if isinstance(model, Trainer) else model.learn
        take(quantised, truth, origin=Origin(client="a", time_s=float(at)))


@pytest.mark.parametrize("loss", ["huber", "mse"])
def test_values_come_close_to_those_of_ridge_on_all_samples_in_one_pass(loss: str) -> None:
    quantised, truth = patients()
    features = scale(9).restore(quantised)
    model = learner(spec("regression", loss={"kind": loss}), 9)
    teach(model, "regression", 0, TRAINED)
    peer = RidgeCV(np.logspace(-3, 3, 25)).fit(features[:TRAINED], truth[:TRAINED])
    theirs = r2_score(truth[TRAINED:], peer.predict(features[TRAINED:]))
    head = model.head()
    assert theirs > 0.35
    assert r2_score(truth[TRAINED:], head.scores(features[TRAINED:])) > theirs - 0.03
    assert (head.task, head.labels, head.normalise) == ("regression", ("progression", "pressure"), False)
    assert model.samples == TRAINED
    assert model.count_C.tolist() == [TRAINED, TRAINED]


def test_outliers_pull_huber_less_than_squares() -> None:
    quantised, truth = patients()
    wild = truth[:TRAINED].copy()
    wild[::8, 0] = 400
    errors = {}
    for loss in ("huber", "mse"):
        model = learner(spec("regression", loss={"kind": loss, **({"delta": 0.2} if loss == "huber" else {})}), 9)
        for at in range(0, TRAINED, 16):
            model.learn(quantised[at : min(at + 16, TRAINED)], Values(wild[at : min(at + 16, TRAINED)]))
        found = model.head().scores(scale(9).restore(quantised[TRAINED:]))
        errors[loss] = np.abs(found - truth[TRAINED:])[:, 0].mean()
    assert errors["huber"] < errors["mse"] - 2


def test_sets_are_found_nearly_as_well_as_by_logistic_regression_a_label() -> None:
    quantised, has = counts()
    features = scale(9).restore(quantised)
    model = learner(spec("multilabel", labels=["a", "b", "c", "d"]), 9)
    teach(model, "multilabel", 0, 700)
    peer = OneVsRestClassifier(LogisticRegression(C=100, max_iter=2000)).fit(features[:700], has[:700])
    head = model.head()
    found = head.scores(features[700:])
    theirs = f1_score(has[700:], peer.predict(features[700:]), average="micro")
    assert theirs > 0.7
    assert f1_score(has[700:], found >= 0.5, average="micro") > theirs - 0.03
    assert ((found > 0) & (found < 1)).all(), "probabilities"
    assert np.abs(found.mean(axis=0) - has[700:].mean(axis=0)).max() < 0.1
    assert model.count_C.tolist() == has[:700].sum(axis=0).tolist()
    assert model.samples == 700


def test_a_label_that_comes_late_is_denied_of_the_rows_before_it_and_one_without_samples_of_all() -> None:
    quantised, has = counts()
    features = scale(9).restore(quantised)
    model = learner(spec("multilabel", labels=["a", "never"]), 9)
    rare = has & np.array([True, True, True, False])
    for at in range(0, 400, 16):
        model.learn(quantised[at : at + 16], sets(rare[at : at + 16]))
    late = np.flatnonzero(has[400:700, 3]) + 400
    for at in range(0, len(late), 8):  # a stream of nothing but samples with the new label
        model.learn(quantised[late[at : at + 8]], sets(has[late[at : at + 8]]))
    head = model.head()
    found = head.scores(features[700:])
    assert (found[:, head.labels.index("never")] == 0).all()
    announced = found[:, head.labels.index("d")][~has[700:, 3]] >= 0.5
    assert announced.mean() < 0.5, "replayed rows keep it from being announced everywhere"
    unguarded = learner(spec("multilabel", memory={"kind": "none"}, retention={"features": "sums"}), 9)
    for at in range(0, len(late), 8):
        unguarded.learn(quantised[late[at : at + 8]], sets(has[late[at : at + 8]]))
    head = unguarded.head()
    assert (head.scores(features[700:])[:, head.labels.index("d")] >= 0.5).mean() > 0.9, "the control"


def test_samples_of_no_label_before_any_label_are_kept_to_be_told_apart_from_later() -> None:
    quantised, has = counts()
    model = learner(spec("multilabel"), 9)
    report = model.learn(quantised[:16], LabelSets(((),) * 16))
    assert (report.steps, model.samples, model.labels) == (0, 16, [])
    model.learn(quantised[16:32], sets(has[16:32]))
    drawn = model.memory.draw(200, np.random.default_rng(0))
    assert len(np.unique(drawn.quantised_Rd, axis=0)) > 16
    again = GradientLearner.from_bytes(model.to_bytes(), scale=scale(9), recipe=model.recipe)
    assert again.to_bytes() == model.to_bytes()


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(
    "axes",
    [
        {},
        {"train": {"mixup": 0.4, "dropout": 0.2, "ema": 0.9, "optimizer": {"kind": "adam"}}},
        {"memory": {"kind": "latents", "capacity": 50, "selection": "herding", "client_share": 0.5, "ttl_s": 60}},
        {"memory": {"kind": "none"}, "retention": {"features": "sums"}, "regularize": [{"kind": "mas", "every": 3}]},
        {"regularize": [{"kind": "si", "every": 3}, {"kind": "l2sp"}]},
        {"regularize": [{"kind": "distill", "every": 3}, {"kind": "ewc", "every": 3, "strength": 0.1}]},
        {"train": {"early_stop": 2, "soup": 2}},
    ],
)
def test_a_learner_stored_in_mid_stream_goes_on_to_the_same_bits(task: str, axes: dict[str, Any]) -> None:
    declared = spec(task, **axes)
    whole, parts = learner(declared, 9), learner(declared, 9)
    teach(whole, task, 0, 160)
    teach(parts, task, 0, 80)
    parts = GradientLearner.from_bytes(parts.to_bytes(), scale=scale(9), recipe=recipe_of(declared))
    teach(parts, task, 80, 160)
    assert parts.to_bytes() == whole.to_bytes()


def otherwise(task: str, rows: slice) -> Truth:
    """Of the same rows, what is not so."""
    truth = part(task, rows)[1]
    return Values(truth.values_BK[::-1].copy()) if isinstance(truth, Values) else sets(~counts()[1][rows])


@pytest.mark.parametrize(("kind", "strength"), [("distill", 10.0), ("ewc", 1.0), ("mas", 1.0), ("si", 100.0)])
@pytest.mark.parametrize("task", TASKS)
def test_a_regulariser_keeps_scores_near_what_they_were_while_the_stream_says_otherwise(
    task: str, kind: str, strength: float
) -> None:
    moved = []
    for regularize in ([], [{"kind": kind, "strength": strength, "every": 60}]):
        bare = {"memory": {"kind": "none"}, "retention": {"features": "sums"}, "regularize": regularize}
        model = learner(spec(task, **bare), 9)
        teach(model, task, 0, 240)
        features = scale(9).restore(part(task, slice(240, 300))[0])
        before = model.head().scores(features)
        for at in range(0, 96, 16):
            rows = slice(at, at + 16)
            model.learn(part(task, rows)[0], otherwise(task, rows))
        moved.append(np.abs(model.head().scores(features) - before).mean())
    assert moved[1] < 0.9 * moved[0]


@pytest.mark.parametrize("task", TASKS)
def test_a_soup_is_served_where_its_error_on_rows_to_come_is_no_greater(task: str) -> None:
    declared = spec(
        task, train={"soup": 4, "optimizer": {"learning_rate": 0.05 if task == "multilabel" else 0.006}, "replay": 0}
    )
    model = learner(declared, 9)
    for _ in range(3):
        teach(model, task, 0, 288)
    figures = model.served.soup.hits
    assert figures["soup"] < 0, "losses, below zero"
    assert model.served.soup.is_served == (figures["soup"] >= figures["live"])
    assert model.served.soup.is_served, "the mean of weights that go to and fro"
    live = model.network.top.weight.detach().numpy()
    assert not np.allclose(model.served.weights()["top.weight"].numpy(), live)


@pytest.mark.parametrize("task", TASKS)
def test_steps_cease_once_the_error_on_rows_to_come_falls_no_more_and_go_on_when_targets_change(task: str) -> None:
    model, reports = learner(spec(task, train={"early_stop": 8}), 9), []
    for at in [*range(0, 288, 16)] * 8:
        reports.append(model.learn(*part(task, slice(at, at + 16))))
        if len(reports) > 100 and not reports[-1].steps:
            break
    first, last = reports[1], reports[-1]
    assert first.prequential_loss is not None
    assert last.prequential_loss is not None
    assert last.tested == 16
    assert last.prequential_loss < first.prequential_loss
    assert last.steps == 0
    rows = slice(0, 16)
    wrong = [model.learn(part(task, rows)[0], otherwise(task, rows)).steps for _ in range(10)]
    assert max(wrong) > 0


def test_a_label_that_is_new_is_learned_at_rest_and_nothing_is_tested_before_the_first() -> None:
    model = learner(spec("multilabel", train={"early_stop": 1}), 9)
    quantised, _ = counts()
    nothing = model.learn(quantised[:8], LabelSets(((),) * 8))
    assert (nothing.tested, nothing.prequential_loss) == (0, None)
    model.learn(quantised[:8], LabelSets((("a",),) * 8))
    reports = [model.learn(quantised[:8], LabelSets((("a",),) * 8)) for _ in range(600)]
    assert reports[-1].steps == 0
    assert model.learn(quantised[:8], LabelSets((("a", "b"),) * 8)).steps == 4


def test_a_moving_tail_regresses_and_its_head_leaves_as_it_is_served() -> None:
    quantised, digit = digits()
    ink = (digit >= 5) * 50.0 + 20
    declared = spec("regression", outputs=[{"name": "ink", "min": 0, "max": 100}], backbone=TIMM, input={})
    tail = Tail()
    model = GradientLearner.create(dim=TAIL_DIM, labels=(), scale=DIGIT_SCALE, recipe=recipe_of(declared), tail=tail)
    before = {name: value.clone() for name, value in (model.tail_state() or {}).items()}
    for at in range(300, 1500, 32):
        model.learn(quantised[at : at + 32], Values(ink[at : at + 32, None]))
    import torch

    after = model.tail_state()
    assert after is not None
    assert any(not torch.equal(value, before[name]) for name, value in after.items())
    with torch.no_grad():
        features = tail(torch.from_numpy(DIGIT_SCALE.restore(quantised[:300]))).numpy()
    head = model.head()
    assert head.normalise, "features of a network are judged by their direction"
    assert r2_score(ink[:300], head.scores(features)[:, 0]) > 0.5
    assert head_parity(head, features) < 1e-3


TIMM = {"source": "hf://timm/x", "revision": "0" * 40, "architecture": "x"}


@pytest.mark.parametrize("task", TASKS)
def test_a_served_head_is_what_its_export_computes(task: str) -> None:
    model = learner(spec(task), 9)
    teach(model, task, 0, 64)
    head: LinearHead = model.head()
    assert head_parity(head, scale(9).restore(part(task, slice(64, 96))[0])) < 1e-3


def test_a_killed_process_is_replaced_by_one_that_knows_the_same_to_the_bit() -> None:
    task = "regression"  # of sets: tests/e2e
    declared = spec(task, regularize=[{"kind": "distill", "every": 5}], train={"early_stop": 50, "soup": 2})
    spared = learner(declared, 9)
    teach(spared, task, 0, 96)
    trainer = Trainer(declared, scale(9))
    try:
        teach(trainer, task, 0, 48)
        trainer.to_bytes()
        teach(trainer, task, 48, 80)
        assert trainer._child is not None
        os.kill(trainer._child.pid, signal.SIGKILL)
        teach(trainer, task, 80, 96)
        learned = trainer.learned()
        assert (trainer.samples, learned.samples) == (96, 96)
        head = learned.solve().head
        assert (head.task, head.labels) == (task, spared.head().labels)
        assert np.array_equal(head.weight_dC, spared.head().weight_dC)
        assert trainer.to_bytes() == spared.to_bytes()
    finally:
        trainer.close()


def test_truth_of_another_task_is_refused_and_nothing_is_learned() -> None:
    plain = ModelSpec.model_validate({"backbone": TIMM, "head": {"kind": "linear"}, "memory": {"kind": "none"}})
    truths: dict[str, Truth] = {task: part(task, slice(0, 8))[1] for task in TASKS}
    truths["classification"] = ["a"] * 8
    for task in truths:
        model = learner(plain if task == "classification" else spec(task), 9)
        before = model.to_bytes()
        for other, truth in truths.items():
            if other != task:
                with pytest.raises(InputError):
                    model.learn(np.zeros((8, 9), np.int16), truth)
        assert model.to_bytes() == before


@pytest.mark.parametrize(
    ("task", "truth", "field"),
    [
        ("multilabel", LabelSets((("a", "a"),)), "label_sets[0]"),
        ("multilabel", LabelSets((("",),)), "labels[0]"),
        ("multilabel", LabelSets(((), ())), "labels"),
        ("regression", Values(np.array([[401.0, 100.0]])), "values[0][0]"),
        ("regression", Values(np.array([[np.nan, 100.0]])), "values[0][0]"),
        ("regression", Values(np.array([[1.0]])), "values"),
    ],
)
def test_malformed_truth_is_refused_by_field_and_nothing_is_learned(task: str, truth: Truth, field: str) -> None:
    model = learner(spec(task), 9)
    before = model.to_bytes()
    with pytest.raises(InputError) as caught:
        model.learn(np.zeros((1, 9), np.int16), truth)
    assert caught.value.field == field
    assert model.to_bytes() == before


def test_a_state_of_another_task_is_refused() -> None:
    model = learner(spec("multilabel"), 9)
    with pytest.raises(InvalidError) as caught:
        GradientLearner.from_bytes(model.to_bytes(), scale=scale(9), recipe=recipe_of(spec("regression")))
    assert caught.value.field == "spec.task"
