"""Random sequences of learning and erasing, each held against a learner that never met the erased clients.

`make test-faults` runs 20,000 of them, `make test` 200: `run(sequences, seed=...)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from everlearn.contribution import Contribution
from everlearn.heads import head_for
from everlearn.learners import ClosedForm, Learner, TargetLearner
from everlearn.memories import memory_for
from everlearn.outputs import Output
from everlearn.spec.model import Memory as Declared
from everlearn.target_sums import TargetSums
from everlearn.truth import LabelSets, Truth, Values
from everlearn.values import FeatureScale

KINDS = ("statistics", "per_class_statistics", "multilabel", "regression")
LABELS = ("ant", "bee", "cat", "dog", "eel")
OUTPUTS = (Output(name="height", low=0.0, high=10.0), Output(name="depth", low=-1.0, high=1.0))


@dataclass
class Found:
    """What a run came to."""

    sequences: int = 0
    batches: int = 0
    erasures: int = 0
    samples: int = 0
    """Erased."""
    differing: list[int] = field(default_factory=list)
    """Sequences that did not end in the state of those who never met the erased."""


class Model:
    """What is declared, and batches for it."""

    def __init__(self, kind: str, *, dim: int, decay: float = 1.0) -> None:
        self.kind = kind
        self.dim = dim
        self.decay = decay
        self.scale = FeatureScale(step_d=np.full(dim, 0.002, np.float32))

    def learner(self) -> Learner:
        """One that has learned nothing."""
        if self.kind in ("multilabel", "regression"):
            outputs = OUTPUTS if self.kind == "regression" else ()
            return TargetLearner(TargetSums(self.dim, outputs=outputs), head_for("ridge"), self.scale)
        options = {"decay": self.decay} if self.decay < 1 else {}
        memory = memory_for(self.kind).create(self.dim, [], Declared(kind=self.kind, **options))
        return ClosedForm(memory, head_for("balanced_ridge"), self.scale)

    def batch(self, random: np.random.Generator) -> Contribution:
        """Of one to six samples."""
        samples = int(random.integers(1, 7))
        features_Bd = random.normal(0, 1, (samples, self.dim)).astype(np.float32)
        return Contribution(quantised_Bd=self.scale.quantise(features_Bd), truth=self._truth(samples, random))

    def _truth(self, samples: int, random: np.random.Generator) -> Truth:
        if self.kind == "regression":
            return Values(np.column_stack([random.uniform(0, 10, samples), random.uniform(-1, 1, samples)]))
        if self.kind == "multilabel":
            chosen = random.random((samples, len(LABELS))) < 0.4
            return LabelSets(tuple(tuple(np.array(LABELS)[row].tolist()) for row in chosen))
        return tuple(random.choice(LABELS, samples).tolist())


def run(sequences: int, *, seed: int, kinds: Sequence[str] = KINDS, fault: str = "") -> Found:
    """`fault`: `floats` (what is subtracted was rounded on another grid), `a batch forgotten`."""
    found = Found()
    for number in range(sequences):
        random = np.random.default_rng((seed, number))
        model = Model(kinds[number % len(kinds)], dim=int(random.integers(2, 9)))
        if not _sequence(model, random, found, fault):
            found.differing.append(number)
        found.sequences += 1
    return found


def _sequence(model: Model, random: np.random.Generator, found: Found, fault: str) -> bool:
    learner = model.learner()
    history: dict[str, list[Contribution]] = {}
    for _ in range(int(random.integers(8, 25))):
        if history and random.random() < 0.25:
            client = str(random.choice(sorted(history)))
            _erase(model, learner, history.pop(client), fault, found)
        else:
            # Through its bytes: a receipt is all that an erasure knows of a batch.
            made = Contribution.parse(model.batch(random).packed())
            learner.integrate(made.quantised_Bd, made.truth)
            history.setdefault(f"client {random.integers(4)}", []).append(made)
            found.batches += 1
        if random.random() < 0.1:
            learner = _restarted(model, learner)
    for client in list(history)[:1]:
        _erase(model, learner, history.pop(client), fault, found)
    never = model.learner()
    for batches in history.values():
        for batch in batches:
            never.integrate(batch.quantised_Bd, batch.truth)
    return learner.learned().digest() == never.learned().digest() and learner.samples == never.samples


def _erase(model: Model, learner: Learner, batches: Sequence[Contribution], fault: str, found: Found) -> None:
    found.erasures += 1
    found.samples += sum(batch.samples for batch in batches)
    part = learner.alone()
    for batch in batches[1:] if fault == "a batch forgotten" else batches:
        quantised_Bd = batch.quantised_Bd
        if fault == "floats":
            features_Bd = np.float16(model.scale.restore(quantised_Bd)).astype(np.float32)
            quantised_Bd = np.floor(features_Bd / model.scale.step_d).astype(np.int16)
        part.integrate(quantised_Bd, batch.truth)
    try:
        learner.subtract(part)
    except Exception:
        if not fault:
            raise


def _restarted(model: Model, learner: Learner) -> Learner:
    """The same from its bytes, as after a restart of the server."""
    data = learner.to_bytes()
    if isinstance(learner, TargetLearner):
        return TargetLearner(TargetSums.from_bytes(data), head_for("ridge"), model.scale)
    return ClosedForm(memory_for(model.kind).from_bytes(data), head_for("balanced_ridge"), model.scale)
