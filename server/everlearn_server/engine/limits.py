"""How far one client can move a model: the declared limits, each a guard. They go by counts that are committed.

A client is the name it gives. Somebody who may choose names freely has as many clients as they like; names are
believed until calls are authenticated.

Axes: B samples, d features.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain

import numpy as np
import numpy.typing as npt

from everlearn.backbones.probes import DECLARED_HEADROOM, HEADROOM
from everlearn.errors import EverlearnError, PreconditionError
from everlearn.learners.base import Learner
from everlearn.metrics.fleet import FleetTally
from everlearn.spec.model import ModelSpec
from everlearn.truth import LabelSets, Truth, Values
from everlearn.values import FeaturesBd, FeatureScale
from everlearn_server.engine.batches import Derived, Tail
from everlearn_server.engine.guards import Guard

LEAST_TESTED = 50
"""Samples of a client from which its accuracy says something."""
LEAST_OF_OTHERS = 20
"""The same of all others together, for each label."""


@dataclass(frozen=True, kw_only=True)
class NormLimit:
    """Vectors longer than `longest` are shortened to it. Each by itself: the order of samples changes nothing."""

    longest: float
    fleet: FleetTally

    def refusal(self, batch: Derived, scores_BC: npt.NDArray[np.float32] | None) -> EverlearnError | None:
        """None: nothing is refused."""
        return None

    def admitted(self, batch: Derived, features_Bd: FeaturesBd) -> FeaturesBd:
        """Shortened where they are too long; others bit for bit as they came."""
        norm_B = lengths(features_Bd)
        long_B = norm_B > self.longest
        if not long_B.any():
            return features_Bd
        shortened_Bd = features_Bd.copy()
        factor_B1 = (self.longest / norm_B[long_B])[:, None]
        shortened_Bd[long_B] = (features_Bd[long_B].astype(np.float64) * factor_B1).astype(np.float32)
        return shortened_Bd

    def took(self, batch: Derived) -> None:
        """Counts those that were shortened."""
        clipped = int(np.count_nonzero(lengths(batch.features_Bd) > self.longest))
        if clipped:
            self.fleet.note(batch.client, clipped=clipped)


@dataclass(frozen=True, kw_only=True)
class ShareLimit:
    """A client may have sent `floor` samples, or `share` of all, whichever is more.

    Who has sent no more than the mean of all clients may always go on: otherwise ten clients with a share of 5 % each
    would stop each other at the floor, whoever came first.
    """

    share: float
    floor: int
    tails: Mapping[str, Tail]

    def refusal(self, batch: Derived, scores_BC: npt.NDArray[np.float32] | None) -> EverlearnError | None:
        """PreconditionError, reason CLIENT_SHARE."""
        before, rows = self.tails[batch.client].samples, len(batch.labels)
        if before + rows <= self.floor:  # most clients, most of the time: the others are not counted for them
            return None
        sent_by = {client: tail.samples for client, tail in self.tails.items() if tail.samples}
        total = sum(sent_by.values())
        allowed = max(float(self.floor), self.share * (total + rows))
        if before + rows <= allowed or (before * len(sent_by) <= total and len(sent_by) > 1):
            return None
        return PreconditionError(
            f"client {batch.client!r} has sent {before:,} of {total:,} samples, and with these {rows:,} it would be "
            f"over {self.share:.1%} of all (limits.client_share) and {self.floor:,} (limits.client_floor); nothing of "
            "the batch is learned. Send it again, as a new batch, when others have sent more, or raise a limit",
            field="spec.limits.client_share",
            reason="CLIENT_SHARE",
        )

    def admitted(self, batch: Derived, features_Bd: FeaturesBd) -> FeaturesBd:
        """As they came."""
        return features_Bd

    def took(self, batch: Derived) -> None:
        """Counted by the writer."""


@dataclass(frozen=True, kw_only=True)
class AccuracyGate:
    """A client on whose samples the head does far worse than on the others' of the same labels is not learned from.

    Its batches go on being tested: once a newer head does better on them it is learned from again. Labels that nobody
    else has shown are not held against it.
    """

    share: float
    fleet: FleetTally

    def refusal(self, batch: Derived, scores_BC: npt.NDArray[np.float32] | None) -> EverlearnError | None:
        """PreconditionError, reason CLIENT_GATE."""
        seen = self.fleet.compare(batch.client, least=LEAST_OF_OTHERS)
        if seen.tested < LEAST_TESTED or seen.accuracy >= self.share * seen.expected:
            return None
        return PreconditionError(
            f"of the last {seen.tested} samples of client {batch.client!r} that could be tested {seen.accuracy:.1%} "
            f"were predicted right, of the others' with the same labels {seen.expected:.1%}; below {self.share:.0%} of "
            "that (limits.client_gate) nothing is learned. Its labels may be wrong, or its data unlike the others'; "
            "batches are tested all the same, and learned again once a newer head does better on them",
            field="spec.limits.client_gate",
            reason="CLIENT_GATE",
        )

    def admitted(self, batch: Derived, features_Bd: FeaturesBd) -> FeaturesBd:
        """As they came."""
        return features_Bd

    def took(self, batch: Derived) -> None:
        """Counted with every test."""


@dataclass(kw_only=True)
class LabelLimit:
    """A client may bring `most` labels that nobody had declared or sent before.

    A head that counts all classes alike gives an invented label as much weight as a true one, however few samples it
    has: 72 samples under 50 invented labels cost scikit-learn's digits 70 points of accuracy.
    """

    most: int
    fleet: FleetTally
    learner: Learner
    _known: int = 0
    """Labels before the batch that is being judged."""

    def refusal(self, batch: Derived, scores_BC: npt.NDArray[np.float32] | None) -> EverlearnError | None:
        """PreconditionError, reason CLIENT_LABELS."""
        self._known = len(self.learner.labels)
        new, brought = self._new(batch.labels), self.fleet[batch.client].brought
        if not new or brought + len(new) <= self.most:
            return None
        return PreconditionError(
            f"client {batch.client!r} has brought {brought} labels of its own and now brings "
            f"{', '.join(map(repr, new[:3]))}{' and more' if len(new) > 3 else ''}; it may bring {self.most} "
            "(limits.client_labels). Declare labels in spec.labels, or raise the limit; then send it again, as a new "
            "batch",
            field="batch.labels",
            reason="CLIENT_LABELS",
        )

    def admitted(self, batch: Derived, features_Bd: FeaturesBd) -> FeaturesBd:
        """As they came."""
        return features_Bd

    def took(self, batch: Derived) -> None:
        """Counts the labels that are new with it."""
        brought = len(self.learner.labels) - self._known
        if brought:
            self.fleet.note(batch.client, brought=brought)

    def _new(self, truth: Truth) -> list[str]:
        if isinstance(truth, Values):
            return []
        known = set(self.learner.labels)
        sent = chain.from_iterable(truth.sets_B) if isinstance(truth, LabelSets) else truth
        return [label for label in dict.fromkeys(sent) if label not in known]


@dataclass(frozen=True, kw_only=True)
class ClientLimits:
    """What a model declares, and what is known of its clients."""

    spec: ModelSpec
    fleet: FleetTally


def guards_of(
    spec: ModelSpec, *, scale: FeatureScale, tails: Mapping[str, Tail], fleet: FleetTally, learner: Learner
) -> tuple[Guard, ...]:
    """The guards of what is declared. `tails`, `fleet`, `learner`: the writer's own, read in each batch's turn."""
    guards: list[Guard] = []
    limits = spec.limits
    if limits.client_share is not None:
        guards.append(ShareLimit(share=limits.client_share, floor=limits.client_floor, tails=tails))
    if limits.client_gate is not None:
        guards.append(AccuracyGate(share=limits.client_gate, fleet=fleet))
    if limits.client_labels is not None:
        guards.append(LabelLimit(most=limits.client_labels, fleet=fleet, learner=learner))
    if limits.norm is not None:
        guards.append(NormLimit(longest=limits.norm * longest_vector(spec, scale), fleet=fleet))
    return tuple(guards)


def longest_vector(spec: ModelSpec, scale: FeatureScale) -> float:
    """Length of a vector each of whose features is at the probes' peak. From the scale alone, which was fixed by them
    and is the same on every machine; the probes themselves, run again, would differ in their last bits."""
    declared = spec.backbone.loader == "identity" and spec.projection is None
    peak_d = scale.step_d.astype(np.float64) * (scale.limit / (DECLARED_HEADROOM if declared else HEADROOM))
    return float(np.sqrt(np.square(peak_d).sum()))


def lengths(features_Bd: FeaturesBd) -> npt.NDArray[np.float64]:
    """Euclidean norm of each row, in float64, each row by itself: of one row alone it is the same bit for bit."""
    return np.array([float(np.sqrt(np.square(row_d, dtype=np.float64).sum())) for row_d in features_Bd])
