"""Without a network: the tables that scikit-learn ships, and what the default rates of other losses are worth.

Which head for a table; and how near one pass of gradient steps comes to the solution over all samples at once, at the
rate that `spec.presets.RATES_OF` gives and at a larger one.

Axes: N samples, d values or features, K questions.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris, load_wine
from sklearn.linear_model import LogisticRegression
from tests.benchmarks.learning import data, ours
from tests.benchmarks.scene import Scene
from tests.benchmarks.table import Row

from everlearn.backbones.identity import IdentityLoader
from everlearn.learners import TargetLearner
from everlearn.learners.gradient.child import recipe_of
from everlearn.learners.gradient.learner import GradientLearner
from everlearn.runtime.session import TrunkSession
from everlearn.spec.load import parse
from everlearn.spec.model import Backbone, ModelSpec
from everlearn.spec.presets import RATES_OF
from everlearn.truth import LabelSets, Truth, Values
from everlearn.values import BackboneFiles, FeaturesBd, FeatureScale, LinearHead, TensorFront

TABLES: Mapping[str, Callable[[], Any]] = {
    "iris": load_iris,
    "wine": load_wine,
    "breast cancer": load_breast_cancer,
}
HEADS = ("balanced_ridge", "balanced_lda", "lda")
"""The default first."""
SPLITS = 20
"""Of a small table: a split of its own has as much luck as a head has merit."""
BATCH = 32
PATIENTS, SHOWN = 300, 1200
"""That are learned, of diabetes and of the digits."""
QUESTIONS: Mapping[str, Sequence[int]] = {
    "even": (0, 2, 4, 6, 8),
    "prime": (2, 3, 5, 7),
    "above four": (5, 6, 7, 8, 9),
    "with a hole": (0, 6, 8, 9),
    "without a curve": (1, 4, 7),
}
"""Of the digits: those for which the answer is yes."""
_STEPS: Mapping[str, Any] = {
    "head": {"kind": "linear"},
    "memory": {"kind": "latents"},
    "retention": {"features": "latents"},
}
Floats = npt.NDArray[np.float64]


def rows(scene: Scene, seeds: int) -> list[Row]:
    """Heads on each table, then values, then sets of labels."""
    torch.set_num_threads(1)
    scene.tell("tables")
    return [*(heads_on(name) for name in TABLES), values_by_steps(seeds), questions_by_steps(scene, seeds)]


def heads_on(name: str, splits: int = SPLITS) -> Row:
    """What each head gets right of a table, over splits in two."""
    found = TABLES[name]()
    values_Nd, class_N = found.data.astype(np.float32), found.target
    right: dict[str, list[float]] = {head: [] for head in HEADS}
    for seed in range(splits):
        order = np.random.default_rng(seed).permutation(len(class_N))
        train, test = np.split(order, [2 * len(order) // 3])
        features_Nd, scale = _as_identity(values_Nd, train)
        for head in HEADS:
            learner = ours.learner_for(ours.Declared(name=head, options={"head": {"kind": head}}).spec(seed), scale)
            learner.learn(scale.quantise(features_Nd[train]), [str(one) for one in class_N[train]])
            predicted = ours.classes(learner.head(quick=False), features_Nd[test])
            right[head].append(float((predicted == class_N[test]).mean()))
    gained = 100 * (np.array(right["balanced_lda"]) - right["balanced_ridge"])
    told = ", ".join(f"`{head}` {100 * np.mean(right[head]):.1f} %" for head in HEADS)
    return Row(
        group=name,
        what=f"head `balanced_lda` against the default, a table of {len(class_N)} rows, {values_Nd.shape[1]} columns",
        measured=f"{gained.mean():+.1f} points",
        detail=f"{told}; two thirds learned, mean over {splits} splits, better in {(gained > 0).sum()} and worse in "
        f"{(gained < 0).sum()}",
    )


def values_by_steps(seeds: int) -> Row:
    """Explained share of the variance of what is to be foreseen (R2)."""
    found = load_diabetes(scaled=False)
    low, high = 0.0, 400.0
    outputs = [{"name": "progression", "min": low, "max": high}]

    def explained(head: LinearHead, features_Td: FeaturesBd, true_T: Floats) -> float:
        off_T = head.scores(features_Td)[:, 0] - true_T
        return 1 - float((off_T**2).sum() / ((true_T - true_T.mean()) ** 2).sum())

    def runs(seed: int) -> dict[str, float]:
        order = np.random.default_rng(seed).permutation(len(found.target))
        train, test = order[:PATIENTS], order[PATIENTS:]
        features_Nd, scale = _as_identity(found.data.astype(np.float32), train)
        truth = Values(found.target[train, None].astype(np.float32))
        solved = _solved(_spec(seed, task="regression", outputs=outputs), scale, features_Nd[train], truth)
        heads = {"ridge": solved}
        for loss in ("huber", "mse"):
            for rate in (RATES_OF[loss], 5 * RATES_OF[loss]):
                spec = _spec(seed, task="regression", outputs=outputs, **_by_steps(loss, rate))
                heads[f"{loss} {rate:g}"] = _stepped(spec, scale, features_Nd[train], truth)
        return {name: explained(head, features_Nd[test], found.target[test]) for name, head in heads.items()}

    each = [runs(seed) for seed in range(seeds)]
    return Row(
        group="diabetes",
        what=f"values by gradient steps, one pass over {PATIENTS} patients, against `ridge`: R2 held out",
        measured=_compared(each, f"huber {RATES_OF['huber']:g}"),
        detail=_listed(each),
    )


def questions_by_steps(scene: Scene, seeds: int) -> Row:
    """Log-loss of an answer, in nats."""
    digits, scale = data.digits(scene), scene.trunk(data.SIZE).scale
    has_NK = np.stack([np.isin(digits.labels_N, numbers) for numbers in QUESTIONS.values()], axis=1)

    def loss_of(chance_TK: Floats, has_TK: npt.NDArray[np.bool_]) -> float:
        return float(-np.log(np.clip(np.where(has_TK, chance_TK, 1 - chance_TK), 1e-7, 1)).mean())

    def runs(seed: int) -> dict[str, float]:
        order = np.random.default_rng(seed).permutation(len(has_NK))
        train, test = order[:SHOWN], order[SHOWN:]
        length_N = np.linalg.norm(digits.features_Nd, axis=1, keepdims=True)
        seen_Nd = digits.features_Nd / length_N * 10
        joint = [LogisticRegression(max_iter=1000).fit(seen_Nd[train], has_N[train]) for has_N in has_NK.T]
        chance_TK = np.stack([one.predict_proba(seen_Nd[test])[:, 1] for one in joint], axis=1)
        found = {"logistic regression": loss_of(chance_TK, has_NK[test])}
        names = list(QUESTIONS)
        truth = LabelSets(tuple(tuple(names[at] for at in np.flatnonzero(has_K)) for has_K in has_NK[train]))
        kind = "binary_cross_entropy"
        for rate in (RATES_OF[kind], 5 * RATES_OF[kind]):
            spec = _spec(seed, task="multilabel", labels=names, **_by_steps(kind, rate))
            head = _stepped(spec, scale, digits.features_Nd[train], truth)
            found[f"{rate:g}"] = loss_of(head.scores(digits.features_Nd[test]).astype(np.float64), has_NK[test])
        return found

    each = [runs(seed) for seed in range(seeds)]
    return Row(
        group="digits",
        what=f"{len(QUESTIONS)} yes-or-no questions by gradient steps, one pass over {SHOWN}, against logistic "
        "regression a question: log-loss held out",
        measured=_compared(each, f"{RATES_OF['binary_cross_entropy']:g}"),
        detail=_listed(each),
    )


def _as_identity(values_Nd: FeaturesBd, train: npt.NDArray[np.int64]) -> tuple[FeaturesBd, FeatureScale]:
    """Features as the identity gives them, whose declared range is that of the training samples."""
    low_d, high_d = values_Nd[train].min(axis=0), values_Nd[train].max(axis=0)
    front = TensorFront(
        shape=(values_Nd.shape[1],), low=tuple(float(end) for end in low_d), high=tuple(float(end) for end in high_d)
    )
    files = BackboneFiles(source="identity", revision="", paths={}, sha256={})
    trunk = IdentityLoader().build(Backbone(source="identity"), files, front, bits=12)
    return TrunkSession(trunk.onnx).run(values_Nd), trunk.scale


def _spec(seed: int, **options: Any) -> ModelSpec:
    # The features are given, whatever the declared backbone: as in `ours`.
    if "train" in options:
        options["train"] = {**options["train"], "seed": seed}
    declared = {"backbone": {"source": "hf://timm/any"}, **options}
    return parse(json.dumps({"metadata": {"name": "bench"}, "spec": declared})).spec


def _by_steps(loss: str, rate: float) -> dict[str, Any]:
    return {**_STEPS, "loss": {"kind": loss}, "train": {"optimizer": {"kind": "sgd", "learning_rate": rate}}}


def _solved(spec: ModelSpec, scale: FeatureScale, features_Nd: FeaturesBd, truth: Truth) -> LinearHead:
    learner = TargetLearner.of(spec, scale)
    learner.integrate(scale.quantise(features_Nd), truth)
    return learner.learned().solve().head


def _stepped(spec: ModelSpec, scale: FeatureScale, features_Nd: FeaturesBd, truth: Truth) -> LinearHead:
    learner = GradientLearner.create(dim=scale.step_d.size, labels=spec.labels, scale=scale, recipe=recipe_of(spec))
    for start in range(0, len(features_Nd), BATCH):
        part = slice(start, start + BATCH)
        taken = Values(truth.values_BK[part]) if isinstance(truth, Values) else truth
        if isinstance(taken, LabelSets):
            taken = LabelSets(taken.sets_B[part])
        learner.learn(scale.quantise(features_Nd[part]), taken)
    return learner.head()


def _compared(each: Sequence[Mapping[str, float]], default: str) -> str:
    """What the default reaches against the solution over all samples, which comes first."""
    peer = next(iter(each[0]))
    return " against ".join(f"{_mean(each, name):.3f}" for name in (default, peer))


def _listed(each: Sequence[Mapping[str, float]]) -> str:
    peer, *others = each[0]
    told = ", ".join(f"{name}: {_mean(each, name):.3f}" for name in others)
    return f"{peer} {_mean(each, peer):.3f}; by learning rate, the default and five times it: {told}; {len(each)} seeds"


def _mean(each: Sequence[Mapping[str, float]], name: str) -> float:
    return float(np.mean([one[name] for one in each]))
