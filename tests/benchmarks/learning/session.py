"""A first session: the last blocks fitted on the first samples, against the same network frozen.

Images that no photograph is like: digits of 8 x 8 pixels, and the same blurred and noisy. One pass in random order,
batches of 32; what is tested is not in it. Both sides are `FirstSession`, the frozen one with a fit that leaves it.

Axes: N rows, T tested rows, n values at the cut.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from tests.benchmarks.learning import data, ours
from tests.benchmarks.learning.kept import kept
from tests.benchmarks.learning.scores import Run
from tests.benchmarks.learning.shift import BATCH, NEW, OLD, at_cut, cut
from tests.benchmarks.scene import Scene
from tests.benchmarks.table import Row

from everlearn.backbones.tail import Tail, TailSession
from everlearn.learners.first_session import FirstSession, Fit
from everlearn.learners.gradient.session import fitted
from everlearn.spec.model import ModelSpec
from everlearn.values import FeaturesBd, Trunk


def rows(scene: Scene, seeds: int) -> list[Row]:
    """The issue's row, for each kind of images. Means over seeds."""
    return [_row(scene, domain, seeds) for domain in (OLD, NEW)]


def _row(scene: Scene, domain: int, seeds: int) -> Row:
    pairs = [_accuracies(scene, domain, seed) for seed in range(seeds)]
    frozen, session = np.mean(pairs, axis=0)
    gains = [b - a for a, b in pairs]
    return Row(
        group="digits",
        what=f"`first_session_analytic` against frozen `analytic`, {data.DOMAINS[domain]}",
        target=">= +3 points far from ImageNet, never below -0.5",
        measured=f"{session - frozen:+.1f} points (least {min(gains):+.1f})",
        met=bool(session - frozen >= 3 and min(gains) >= -0.5),
        detail=f"frozen {frozen:.1f} %, first session {session:.1f} %; 512 samples, 2 blocks, defaults; {seeds} seeds",
    )


def _accuracies(scene: Scene, domain: int, seed: int) -> tuple[float, float]:
    """Of the frozen network and after a first session, in percent."""
    spec = ours.Declared(name="first_session", options={"recipe": "first_session_analytic"}).spec(seed)
    trunk, tail = cut(scene, spec.adapt.blocks or 1)
    quantised_Nn, labels_N = at_cut(scene, trunk, domain), scene.digits[1]
    order = np.random.default_rng(seed).permutation(len(labels_N))
    test, train = order[: len(order) // 5], order[len(order) // 5 :]
    told = f"{ours.code_digest()} {trunk.feature_digest} {spec.model_dump_json()} {domain}"

    def learned(fit: Fit) -> Run:
        learner = FirstSession(spec, trunk.scale, tail, fit)
        for start in range(0, len(train), BATCH):
            batch = train[start : start + BATCH]
            learner.integrate(quantised_Nn[batch], [str(label) for label in labels_N[batch]])
        solution = learner.learned().solve()
        assert solution.tail is not None
        session = TailSession(solution.tail)
        parts = [session.run(trunk.scale.restore(quantised_Nn[part])) for part in np.array_split(test, 8)]
        predicted = ours.classes(solution.head, np.concatenate(parts))
        return Run(predicted_ET=predicted[None], learn_ms=0, solve_ms=0, state_bytes=len(learner.to_bytes()))

    def moved() -> Run:
        scene.tell(f"first session, {data.DOMAINS[domain]}, seed {seed}")
        return learned(_fit_of(spec, trunk))

    key = hashlib.sha256(told.encode()).hexdigest()
    frozen = kept(scene.folder / "runs", f"frozen at the cut {domain} {seed}", key, lambda: learned(_left))
    session = kept(scene.folder / "runs", f"session {domain} {seed}", key, moved)
    found = [100 * float((run.predicted_ET[0] == labels_N[test]).mean()) for run in (frozen, session)]
    return found[0], found[1]


def _left(tail: Tail, values_Nn: FeaturesBd, labels: Sequence[str]) -> Tail:
    return tail


def _fit_of(spec: ModelSpec, trunk: Trunk) -> Fit:
    def fit(tail: Tail, values_Nn: FeaturesBd, labels: Sequence[str]) -> Tail:
        torch.set_num_threads(1)
        return replace(tail, weights=fitted(tail, spec, values_Nn, labels, device="cpu"))

    return fit
