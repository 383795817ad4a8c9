"""Learns several targets a sample in closed form: sets of labels, or the values of a regression's outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np
import numpy.typing as npt

from everlearn.errors import DataLossError, InputError, InvalidError, PreconditionError
from everlearn.heads import head_for
from everlearn.heads.base import Head
from everlearn.learners.base import Learned, Learner, Solution
from everlearn.memories.base import Origin
from everlearn.spec.model import ModelSpec
from everlearn.sums import Sums
from everlearn.target_sums import TargetSums
from everlearn.truth import LabelSets, Truth, Values
from everlearn.values import FeatureScale, QuantisedBd


class TargetLearner(Learner):
    """Sums of integers, whatever the order: after any stream the head is that of joint training on all of it.

    >>> from everlearn.heads import head_for
    >>> scale = FeatureScale(step_d=np.full(2, 0.001, np.float32))
    >>> learner = TargetLearner(TargetSums(2), head_for("ridge"), scale)
    >>> truth = LabelSets((("red",), ("red", "round"), ()))
    >>> learner.integrate(np.array([[900, 10], [950, 800], [20, 30]], np.int16), truth)
    >>> learner.labels, learner.samples, learner.learned().solve().head.labels
    (['red', 'round'], 3, ('red', 'round'))
    """

    def __init__(self, sums: TargetSums, head: Head, scale: FeatureScale) -> None:
        self.targets = sums
        self._head = head
        self._scale = scale

    @classmethod
    def of(cls, spec: ModelSpec, scale: FeatureScale, data: bytes | None = None) -> Self:
        """What a declaration describes, as it was when `to_bytes` gave `data`; empty without.

        Raises SpecError for an unknown head, DataLossError for bytes that do not belong to it.
        """
        outputs = spec.declared_outputs
        sums = TargetSums.from_bytes(data) if data else TargetSums(scale.step_d.size, outputs=outputs)
        if sums.dim != scale.step_d.size or sums.outputs != outputs:
            raise DataLossError(
                f"the stored memory has {sums.dim} features and outputs {[each.name for each in sums.outputs]}, its "
                f"model {scale.step_d.size} and {[each.name for each in outputs]}"
            )
        learner = cls(sums, head_for(spec.head.kind, spec.head.regularization), scale)
        learner.declare(spec.labels)
        return learner

    @property
    def labels(self) -> Sequence[str]:
        """See Learner; of a regression, its outputs."""
        return self.targets.labels

    @property
    def count_C(self) -> npt.NDArray[np.int64]:  # noqa: N802  # axes
        """See Learner; a sample counts for each label that it has, and for each output."""
        return self.targets.count_K

    @property
    def samples(self) -> int:
        """See Learner."""
        return self.targets.samples

    @property
    def sums(self) -> Sums:
        """See Learner; none of single labels."""
        raise PreconditionError(
            f"there is nothing to compare classes by: the model's task is {self.targets.task}", reason="NO_SUMS"
        )

    def integrate(self, quantised_Bd: QuantisedBd, labels: Truth, *, origin: Origin | None = None) -> None:
        """See Learner."""
        if isinstance(labels, Values):
            self.targets.add_values(quantised_Bd, labels.values_BK)
        elif isinstance(labels, LabelSets):
            self.targets.add_sets(quantised_Bd, labels.sets_B)
        else:
            raise InputError(f"this model's task is {self.targets.task}; one label a sample says too little")

    def declare(self, labels: Sequence[str]) -> None:
        """See Learner."""
        known = set(self.targets.labels)
        self.targets.declare([label for label in labels if label not in known])

    @property
    def inseparable_because(self) -> str:
        """See Learner: all of it can."""
        return ""

    def alone(self, data: bytes = b"") -> TargetLearner:
        """See Learner."""
        dim, outputs = self.targets.dim, self.targets.outputs
        sums = TargetSums.from_bytes(data) if data else TargetSums(dim, outputs=outputs)
        if sums.dim != dim or sums.outputs != outputs:
            raise DataLossError("a part of other features or outputs than its model's")
        return TargetLearner(sums, self._head, self._scale)

    def subtract(self, other: Learner) -> None:
        """See Learner."""
        self.targets.subtract(self._alike(other).targets)

    def merge(self, other: Learner) -> None:
        """See Learner."""
        self.targets.merge(self._alike(other).targets)

    def learned(self) -> Learned:
        """See Learner."""
        return LearnedTargets(self.targets.copy(), self._head, self._scale)

    def configure(self, spec: ModelSpec) -> None:
        """See Learner."""
        self._head = head_for(spec.head.kind, spec.head.regularization)

    def revised(self, learned: Learned) -> Learned:
        """See Learner."""
        assert isinstance(learned, LearnedTargets), "it was made here"
        return LearnedTargets(learned.targets, self._head, self._scale)

    def to_bytes(self) -> bytes:
        """See Learner."""
        return self.targets.to_bytes()

    def _alike(self, other: Learner) -> TargetLearner:
        if not isinstance(other, TargetLearner) or other._scale.digest != self._scale.digest:
            raise InvalidError("a part that was not learned on this model's features", field="learner")
        return other


class LearnedTargets(Learned):
    """Sums of one moment, and the head that is solved from them."""

    def __init__(self, sums: TargetSums, head: Head, scale: FeatureScale) -> None:
        self.targets = sums
        self._head = head
        self._scale = scale

    @property
    def labels(self) -> Sequence[str]:
        """See Learned."""
        return self.targets.labels

    @property
    def count_C(self) -> npt.NDArray[np.int64]:  # noqa: N802  # axes
        """See Learned."""
        return self.targets.count_K

    @property
    def samples(self) -> int:
        """See Learned."""
        return self.targets.samples

    def digest(self) -> str:
        """See Learned."""
        return self.targets.digest()

    def solve(self, *, hint: float | None = None) -> Solution:
        """See Learned."""
        return Solution(head=self._head.solve_targets(self.targets, self._scale, hint=hint))
