"""Fleets on scikit-learn's digits, some of whose clients mean harm, through the integration that a server runs.

The features are the pixels, brought to [-1, 1]: what the identity makes of them. 20 clients share 80 % of the samples;
the rest are the test.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt
from sklearn.datasets import load_digits

from everlearn.heads import head_for
from everlearn.learners.closed_form import ClosedForm
from everlearn.memories.statistics import Statistics
from everlearn.metrics.prequential import Prequential
from everlearn.spec.load import parse
from everlearn.spec.model import ModelSpec
from everlearn.values import FeaturesBd, FeatureScale, LinearHead
from everlearn_server.engine.batches import Derived, Outcome, Tail
from everlearn_server.engine.integration import Integration
from everlearn_server.engine.serving import Answers, Snapshot
from everlearn_server.store.rows import StreamRow

CLIENTS, BATCH, NEW_HEAD_EVERY = 20, 16, 10
SCALE = FeatureScale(step_d=np.full(64, 2.0**-9, np.float32))
"""What the identity's probes come to for values in [-1, 1]: four times that."""
Part = tuple[FeaturesBd, list[str]]
Attack = Literal["none", "volume", "shifted volume", "scale", "shift", "flip", "labels"]


def digits() -> tuple[dict[str, Part], Part]:
    """What each client has, evenly, and the test."""
    values_Nd, digit_N = load_digits(return_X_y=True)
    order_N = np.random.default_rng(0).permutation(len(values_Nd))
    features_Nd = ((values_Nd[order_N] - 8) / 8).astype(np.float32)
    labels = [str(digit) for digit in digit_N[order_N]]
    held = len(labels) * 4 // 5
    parts = np.array_split(np.arange(held), CLIENTS)
    fleet = {f"c{n:02}": (features_Nd[part], [labels[row] for row in part]) for n, part in enumerate(parts)}
    return fleet, (features_Nd[held:], labels[held:])


def attacked(fleet: Mapping[str, Part], attack: Attack, bad: int) -> dict[str, Part]:
    """The first `bad` clients do as the attack says."""
    rng = np.random.default_rng(1)
    return {client: _turned(part, attack, rng) if n < bad else part for n, (client, part) in enumerate(fleet.items())}


def _turned(part: Part, attack: Attack, rng: np.random.Generator) -> Part:
    features_Bd, labels = part
    shifted = [str((int(label) + 1) % 10) for label in labels]
    match attack:
        case "volume":
            wrong = [str((int(label) + int(rng.integers(1, 10))) % 10) for label in labels * 50]
            return np.tile(features_Bd, (50, 1)), wrong
        case "shifted volume":
            return np.tile(features_Bd, (50, 1)), shifted * 50
        case "scale":
            return features_Bd * 10, shifted
        case "shift":
            return features_Bd, shifted
        case "flip":
            pairs = {"3": "8", "8": "3", "1": "7", "7": "1"}
            return features_Bd, [pairs.get(label, label) for label in labels]
        case "labels":
            return features_Bd, [f"{label}, the {row % 5}th" for row, label in enumerate(labels)]
        case _:
            return part


@dataclass(frozen=True, kw_only=True)
class Ended:
    """After all have sent everything."""

    accuracy: float
    refused: dict[str, dict[str, int]]
    """Client -> reason -> batches."""
    work: Integration
    learner: ClosedForm


def run(fleet: Mapping[str, Part], test: Part, limits: Mapping[str, Any], *, labels: Sequence[str] = ()) -> Ended:
    """Batches of all clients, mixed; a new head after every tenth. `labels`: declared."""
    spec = declared(limits)
    learner = ClosedForm(Statistics.create(64, labels), head_for("balanced_ridge"), SCALE)
    live: list[Snapshot] = []
    streams = {client: StreamRow(epoch=1, durable_sequence=0) for client in fleet}
    work = Integration(
        learner=learner,
        scale=SCALE,
        prequential=Prequential(),
        streams=streams,
        live=lambda: live[-1] if live else None,
    )
    work.limit(spec)
    turns = [client for client, (_, labels) in fleet.items() for _ in range(-(-len(labels) // BATCH))]
    np.random.default_rng(1).shuffle(turns)
    refused: dict[str, dict[str, int]] = {}
    for turn, client in enumerate(turns):
        outcome = send(work, client, *_batch(fleet[client], work.tails[client]))
        if outcome.refusal is not None:
            reasons = refused.setdefault(client, {})
            reasons[outcome.refusal.reason] = reasons.get(outcome.refusal.reason, 0) + 1
        if turn % NEW_HEAD_EVERY == NEW_HEAD_EVERY - 1:
            live.append(snapshot(learner, len(live) + 1))
    predicted = np.array(learner.predict(test[0]))
    return Ended(accuracy=float((predicted == np.array(test[1])).mean()), refused=refused, work=work, learner=learner)


def send(work: Integration, client: str, features_Bd: FeaturesBd, labels: list[str]) -> Outcome:
    """The client's next batch."""
    tail = work.tails.setdefault(client, Tail(epoch=1, integrated=0, durable=0))
    batch = Derived(
        client=client,
        epoch=tail.epoch,
        sequence=tail.integrated + 1,
        features_Bd=features_Bd,
        labels=tuple(labels),
    )
    outcome = work.take(batch)
    assert isinstance(outcome, Outcome), outcome
    return outcome


def declared(limits: Mapping[str, Any]) -> ModelSpec:
    """A completed declaration of pixels as they are."""
    spec = {
        "backbone": {"source": "identity"},
        "input": {"modality": "tensor", "shape": [64], "range": [-1, 1]},
        "limits": dict(limits),
    }
    return parse(json.dumps({"metadata": {"name": "digits"}, "spec": spec})).spec


def snapshot(learner: ClosedForm, version: int) -> Snapshot:
    """The head of what has been learned by now, as it serves."""
    return cast(Snapshot, _Served(head=learner.learned().solve().head, version=version))


@dataclass(frozen=True, kw_only=True)
class _Served:
    """What of a snapshot an integration asks for."""

    head: LinearHead
    version: int
    tail: None = None

    def scores(self, features_Bd: FeaturesBd) -> npt.NDArray[np.float32]:
        return self.head.scores(features_Bd)

    def answers(self, features_Bd: FeaturesBd) -> Answers:
        return Answers(self.head.scores(features_Bd), None)


def _batch(part: Part, tail: Tail) -> tuple[npt.NDArray[np.float32], list[str]]:
    start = tail.integrated * BATCH
    return part[0][start : start + BATCH], part[1][start : start + BATCH]
