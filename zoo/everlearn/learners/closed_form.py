"""Learns a classifier from a stream of features in closed form, without keeping the features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Self

import numpy as np
import numpy.typing as npt

from everlearn.errors import DataLossError, InputError, InvalidError
from everlearn.heads import head_for
from everlearn.heads._novelty import solve_novelty
from everlearn.heads.base import Head
from everlearn.learners.base import Learned, Learner, Solution, not_separable
from everlearn.memories import memory_for
from everlearn.memories.base import Memory, Origin
from everlearn.memories.sealing import Sealer, seal, unseal
from everlearn.spec.model import ModelSpec
from everlearn.sums import Sums
from everlearn.truth import Truth, single_labels
from everlearn.values import FeaturesBd, FeatureScale, LinearHead, QuantisedBd


class ClosedForm(Learner):
    """Quantise, integrate, solve: after any stream the head is that of joint training on all of it.

    >>> from everlearn.heads import head_for
    >>> from everlearn.memories import memory_for
    >>> scale = FeatureScale(step_d=np.full(2, 0.001, np.float32))
    >>> learner = ClosedForm(memory_for("statistics").create(2, []), head_for("balanced_ridge"), scale)
    >>> learner.learn(np.array([[0.0, 1.0], [0.1, 0.9]], np.float32), ["cat", "cat"])
    >>> learner.learn(np.array([[1.0, 0.0], [0.9, 0.2]], np.float32), ["dog", "dog"])
    >>> learner.predict(np.array([[0.2, 0.8], [0.8, 0.1]], np.float32))
    ['cat', 'dog']
    """

    def __init__(
        self,
        memory: Memory,
        head: Head,
        scale: FeatureScale,
        *,
        sealer: Sealer | None = None,
        false_alarms: float | None = None,
    ) -> None:
        """`sealer`: what features of single samples are sealed with at rest; without one they are not. `false_alarms`:
        share of samples of learned classes that may be taken for unknown; None where nothing is to be (see Unknown)."""
        self.memory = memory
        self._false_alarms = false_alarms
        self._sealer = sealer
        self.scale = scale
        self._head = head

    @classmethod
    def of(
        cls, spec: ModelSpec, scale: FeatureScale, data: bytes | None = None, *, sealer: Sealer | None = None
    ) -> Self:
        """What a declaration describes, as it was when `to_bytes` gave `data`; empty without.

        Raises SpecError for unknown kinds, DataLossError for bytes that do not belong to it.
        """
        kind, dim = memory_for(spec.memory.kind), scale.step_d.size
        memory = kind.from_bytes(unseal(data, sealer)) if data else kind.create(dim, spec.labels, spec.memory)
        if memory.dim != dim:
            raise DataLossError(f"the stored memory has {memory.dim} features, its trunk {dim}")
        if data:
            memory.configure(spec.memory)
        head = head_for(spec.head.kind, spec.head.regularization)
        learner = cls(memory, head, scale, sealer=sealer, false_alarms=spec.unknown.level)
        learner.declare(spec.labels)
        return learner

    # -- of every learner ---------------------------------------------------------------------------------------

    @property
    def labels(self) -> Sequence[str]:
        """See Learner."""
        return self.memory.labels

    @property
    def count_C(self) -> npt.NDArray[np.int64]:  # noqa: N802  # axes
        """See Learner."""
        return self.memory.seen_C

    @property
    def sums(self) -> Sums:
        """See Learner."""
        return self.memory.sums

    @property
    def inexact_because(self) -> str:
        """See Learner."""
        return self.memory.inexact_because

    @property
    def sums_scale(self) -> FeatureScale:
        """See Learner."""
        return self.scale

    @property
    def ttl_s(self) -> float | None:
        """See Learner."""
        return self.memory.ttl_s

    def integrate(self, quantised_Bd: QuantisedBd, labels: Truth, *, origin: Origin | None = None) -> None:
        """See Learner."""
        self.memory.integrate(quantised_Bd, single_labels(labels), origin=origin)

    def declare(self, labels: Sequence[str]) -> None:
        """See Learner."""
        known = set(self.memory.labels)
        self.memory.declare([label for label in labels if label not in known])

    @property
    def inseparable_because(self) -> str:
        """See Learner."""
        if self.memory.subtracts:
            return ""
        return self.memory.inexact_because or "what is learned from now on decays (memory.decay)"

    def alone(self, data: bytes = b"") -> ClosedForm:
        """See Learner."""
        if self.inseparable_because:
            raise not_separable(self)
        kind, dim = type(self.memory), self.memory.dim
        memory = kind.from_bytes(data) if data else kind.create(dim, [])
        if memory.dim != dim:
            raise DataLossError(f"a part of {memory.dim} features, and its model has {dim}")
        return ClosedForm(memory, self._head, self.scale)

    def subtract(self, other: Learner) -> None:
        """See Learner."""
        self.memory.subtract(self._alike(other).memory)

    def merge(self, other: Learner) -> None:
        """See Learner."""
        self.memory.merge(self._alike(other).memory)

    def forget_class(self, label: str) -> None:
        """See Learner."""
        self.memory.forget_class(label)

    def forget_client(self, client: str, *, before: bytes | None = None) -> int:
        """See Learner."""
        gone = self.memory.forget_client(client)
        if self._sealer is not None:
            self._sealer.renew(client)
        return gone

    def expire(self, now_s: float) -> int:
        """See Learner."""
        return self.memory.expire(now_s)

    @property
    def held_bytes(self) -> int:
        """See Learner."""
        return self.memory.held_bytes

    def set_down(self, recall: Callable[[], bytes]) -> int:
        """See Learner."""
        return self.memory.set_down(lambda: unseal(recall(), self._sealer))

    def learned(self) -> Learned:
        """See Learner."""
        return self._solving(self.memory.sums.copy(), self.memory.seen_C.copy())

    def configure(self, spec: ModelSpec) -> None:
        """See Learner."""
        self._head = head_for(spec.head.kind, spec.head.regularization)
        self._false_alarms = spec.unknown.level
        self.memory.configure(spec.memory)

    def revised(self, learned: Learned) -> Learned:
        """See Learner."""
        assert isinstance(learned, LearnedSums), "it was made here"
        return self._solving(learned.sums, learned.count_C)

    def to_bytes(self) -> bytes:
        """See Learner."""
        return seal(self.memory.to_bytes(), self._sealer)

    # -- without a server ---------------------------------------------------------------------------------------

    def learn(self, features_Bd: FeaturesBd, labels: Sequence[str]) -> None:
        """Learns a batch; B may be 0. Raises InputError for wrong shapes, labels, NaN or infinity: nothing is learned.

        A feature beyond the scale's range saturates (the scale has headroom for that).
        """
        self.integrate(self.scale.quantise(self._checked(features_Bd)), labels)

    def head(self, hint: float | None = None) -> LinearHead:
        """The classifier now. `hint`: an earlier head's regularization, for a quick solve (see Head).

        Raises PreconditionError (reason EMPTY_MEMORY) where nothing has been learned.
        """
        return self._head.solve(self.memory.sums, self.scale, hint=hint)

    def predict(self, features_Bd: FeaturesBd) -> list[str]:
        """Label of each sample by the classifier now. It solves anew; for many calls keep `head()`."""
        head = self.head()
        return [head.labels[index] for index in head.scores(self._checked(features_Bd)).argmax(axis=1)]

    def _solving(self, sums: Sums, seen_C: npt.NDArray[np.int64]) -> LearnedSums:
        return LearnedSums(sums, self._head, self.scale, seen_C, false_alarms=self._false_alarms)

    def _alike(self, other: Learner) -> ClosedForm:
        if self.inseparable_because:
            raise not_separable(self)
        if not isinstance(other, ClosedForm) or other.scale.digest != self.scale.digest:
            raise InvalidError("a part that was not learned on this model's features", field="learner")
        return other

    def _checked(self, features_Bd: FeaturesBd) -> FeaturesBd:
        dim = self.scale.step_d.size
        if features_Bd.ndim != 2 or features_Bd.shape[1] != dim:
            raise InputError(f"features have shape {features_Bd.shape}; it must be [B, {dim}]", field="features")
        if not np.isfinite(features_Bd).all():
            row = int(np.flatnonzero(~np.isfinite(features_Bd).all(axis=1))[0])
            raise InputError("features are NaN or infinite; they must be finite", field=f"features[{row}]")
        return features_Bd


class LearnedSums(Learned):
    """Sums of one moment, and the head that is solved from them."""

    def __init__(
        self,
        sums: Sums,
        head: Head,
        scale: FeatureScale,
        seen_C: npt.NDArray[np.int64],
        *,
        false_alarms: float | None = None,
    ) -> None:
        self.sums = sums
        self._false_alarms = false_alarms
        self._seen_C = seen_C
        self._head = head
        self._scale = scale

    @property
    def labels(self) -> Sequence[str]:
        """See Learned."""
        return self.sums.labels

    @property
    def count_C(self) -> npt.NDArray[np.int64]:  # noqa: N802  # axes
        """See Learned."""
        return self._seen_C

    def digest(self) -> str:
        """See Learned."""
        return self.sums.digest()

    def solve(self, *, hint: float | None = None) -> Solution:
        """See Learned."""
        head = self._head.solve(self.sums, self._scale, hint=hint)
        if self._false_alarms is None:
            return Solution(head=head)
        novelty = solve_novelty(self.sums, self._scale, false_alarms=self._false_alarms)
        return Solution(head=replace(head, novelty=novelty))
