"""everlearn's recipes on features: each a declaration in YAML, learned by the zoo's learner for it, without the wire.

Axes: B samples in a batch, d features, E looks, T test samples.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from tests.benchmarks.learning.scores import Run
from tests.benchmarks.learning.streams import Stream

import everlearn
import everlearn.memories
from everlearn import plugins
from everlearn.backbones.projection import project, weights
from everlearn.learners import ClosedForm
from everlearn.learners.gradient.learner import GradientLearner
from everlearn.learners.gradient.recipe import HEADS, Recipe
from everlearn.spec.load import parse
from everlearn.spec.model import ModelSpec
from everlearn.spec.presets import PRESETS
from everlearn.values import FeaturesBd, FeatureScale, LinearHead, QuantisedBd, Trunk

BEYOND_PRESETS: Mapping[str, Mapping[str, Any]] = {
    "analytic, head balanced_ridge": {"head": {"kind": "balanced_ridge"}},
    "analytic, head balanced_lda": {"head": {"kind": "balanced_lda"}},
    "plain ridge": {"head": {"kind": "ridge"}},
    "ncm": {"head": {"kind": "ncm"}},
    "analytic, 2000 random features": {"projection": {"dim": 2000}},
    "latent_replay, 200 latents": {"recipe": "latent_replay", "memory": {"kind": "latents", "capacity": 200}},
    "latent_replay, 64 rows a step": {"recipe": "latent_replay", "train": {"replay": 64}},
    "latent_replay, ema 0.99": {"recipe": "latent_replay", "train": {"ema": 0.99}},
}
"""Compositions that no preset names, as a declaration would write them."""
ONLY_ON: Mapping[str, tuple[str, ...]] = {
    "latent_replay, 64 rows a step": ("class",),
    "latent_replay, ema 0.99": ("class", "domain"),
}
"""Streams of those that only answer a question of their own; the others learn all."""


class Learner(Protocol):
    """What a benchmark needs of any recipe."""

    def learn(self, quantised_Bd: QuantisedBd, labels: Sequence[str]) -> None:
        """A batch."""

    def head(self, *, quick: bool) -> LinearHead:
        """The classifier now; `quick` as between publications, else as the server publishes."""

    def state_bytes(self) -> int:
        """What must be kept to go on, as stored."""


@dataclass(frozen=True, kw_only=True)
class Declared:
    """One row of the table."""

    name: str
    options: Mapping[str, Any]
    """What its declaration says below `spec`, the backbone aside."""

    def spec(self, seed: int) -> ModelSpec:
        """The declaration, read as the server reads it. The seed is of everything random."""
        options = dict(self.options)
        if self.is_gradient:
            options["train"] = {**options.get("train", {}), "seed": seed}
        return _parsed(json.dumps(options, sort_keys=True))

    @cached_property
    def is_gradient(self) -> bool:
        """Whether weights move by gradient steps."""
        return _parsed(json.dumps(dict(self.options), sort_keys=True)).head.kind in HEADS

    def learns(self, stream: str, *, quick: bool) -> bool:
        """Whether it has a row in that stream's table."""
        # Random features cost ten times the rest: where the issue compares, and not in a quick run.
        if self.spec(0).projection is not None:
            return stream == "class" and not quick
        return stream in ONLY_ON.get(self.name, (stream,))

    def features(self, trunk: Trunk, features_Nd: FeaturesBd) -> FeaturesBd:
        """What the heads see: the trunk's, or random features of them."""
        projection = self.spec(0).projection
        if projection is None:
            return features_Nd
        projected: FeaturesBd = np.maximum(features_Nd @ weights(trunk.feature_dim, projection), 0)
        return projected

    def trunk(self, trunk: Trunk) -> Trunk:
        """The trunk that a declaration would build."""
        projection = self.spec(0).projection
        return trunk if projection is None else project(trunk, projection)


def recipes() -> list[Declared]:
    """All that this checkout can run on the features of a frozen trunk: presets first, in their order."""
    found = [Declared(name=name, options={"recipe": name}) for name in PRESETS]
    found += [Declared(name=name, options=options) for name, options in BEYOND_PRESETS.items()]
    default = Declared(name="", options={}).spec(0).head.kind
    return [one for one in found if _runs(one) and one.name != f"analytic, head {default}"]


def _runs(declared: Declared) -> bool:
    spec = declared.spec(0)
    return spec.adapt.kind == "frozen" and spec.memory.kind in plugins.kinds(everlearn.memories)


@cache
def _parsed(options: str) -> ModelSpec:
    # The backbone is given as features; a declaration needs one all the same.
    declared = {"backbone": {"source": "hf://timm/any"}, **json.loads(options)}
    return parse(json.dumps({"metadata": {"name": "bench"}, "spec": declared})).spec


def learner_for(spec: ModelSpec, scale: FeatureScale) -> Learner:
    """A fresh learner."""
    return _Trained(spec, scale) if spec.head.kind in HEADS else _Solved(spec, scale)


class _Solved:
    def __init__(self, spec: ModelSpec, scale: FeatureScale) -> None:
        self._learner = ClosedForm.of(spec, scale)
        self._hint: float | None = None

    def learn(self, quantised_Bd: QuantisedBd, labels: Sequence[str]) -> None:
        self._learner.integrate(quantised_Bd, labels)

    def head(self, *, quick: bool) -> LinearHead:
        head = self._learner.head(self._hint if quick else None)
        self._hint = head.regularization or None
        return head

    def state_bytes(self) -> int:
        return len(self._learner.to_bytes())


class _Trained:
    def __init__(self, spec: ModelSpec, scale: FeatureScale) -> None:
        recipe = Recipe(
            head=spec.head.kind, memory=spec.memory, regularize=spec.regularize, loss=spec.loss, train=spec.train
        )
        self._learner = GradientLearner.create(dim=scale.step_d.size, labels=[], scale=scale, recipe=recipe)

    def learn(self, quantised_Bd: QuantisedBd, labels: Sequence[str]) -> None:
        self._learner.learn(quantised_Bd, labels)

    def head(self, *, quick: bool) -> LinearHead:
        return self._learner.head()

    def state_bytes(self) -> int:
        return len(self._learner.to_bytes())


def run(spec: ModelSpec, trunk: Trunk, features_Nd: FeaturesBd, stream: Stream) -> Run:
    """Learns the stream. `trunk` and `features_Nd` are those that the recipe sees.

    At a step's end the head is solved with a search of its penalty, as at a publication, and between with a hint.
    """
    torch.set_num_threads(1)
    learner = learner_for(spec, trunk.scale)
    names = [str(label) for label in stream.label_N]
    learn_s: list[float] = []
    solve_s: list[float] = []
    looks = {look: index for index, look in enumerate(stream.looks)}
    predicted_ET = np.full(stream.seen_ET.shape, -1, np.int64)
    for count, (start, end) in enumerate(stream.batches, 1):
        batch_Bd = features_Nd[stream.row_N[start:end]]
        begun_s = time.process_time()
        learner.learn(trunk.scale.quantise(batch_Bd), names[start:end])
        if end - start == stream.batches[0][1]:
            learn_s.append(time.process_time() - begun_s)
        if count in looks:
            begun_s = time.process_time()
            head = learner.head(quick=looks[count] not in stream.step_looks)
            solve_s.append(time.process_time() - begun_s)
            predicted_ET[looks[count]] = classes(head, features_Nd[stream.test_T])
    return Run(
        predicted_ET=predicted_ET,
        learn_ms=1e3 * float(np.median(learn_s)),
        solve_ms=1e3 * float(np.median(solve_s)),
        state_bytes=learner.state_bytes(),
    )


def classes(head: LinearHead, features_Td: FeaturesBd) -> npt.NDArray[np.int64]:
    """The class that the head says, as the number that its label is."""
    number_C = np.array([int(label) for label in head.labels], np.int64)
    best_T: npt.NDArray[np.int64] = number_C[head.scores(features_Td).argmax(axis=1)]
    return best_T


@cache
def code_digest() -> str:
    """sha256 of the zoo's and this module's code: kept runs are of the code that is there."""
    hashed = hashlib.sha256(Path(__file__).read_bytes())
    for path in sorted(Path(everlearn.__file__).parent.rglob("*.py")):
        hashed.update(path.read_bytes())
    return hashed.hexdigest()
