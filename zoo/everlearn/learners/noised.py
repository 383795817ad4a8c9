"""Learns a classifier in closed form under differential privacy: noise before anything of it can be seen.

Axes: B samples in a batch, C classes, d features.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Literal, Self

import numpy as np
import numpy.typing as npt

from everlearn.heads._noised import solve_noised
from everlearn.learners.base import Learned, Learner, Solution
from everlearn.memories.base import Origin
from everlearn.privacy.noised_sums import NoisedSums
from everlearn.spec.model import Head, ModelSpec
from everlearn.truth import Truth, single_labels
from everlearn.values import FeatureScale, QuantisedBd


class Noised(Learner):
    """Sums of which only what `release` has hidden is ever told: labels, counts, heads, bytes, digests."""

    def __init__(self, sums: NoisedSums, head: Head, noise: float) -> None:
        """`noise`: standard deviation in units of what one sample changes."""
        self._sums = sums
        self._head = head
        self._noise = self._next_noise = noise

    @classmethod
    def of(cls, spec: ModelSpec, scale: FeatureScale, data: bytes | None = None) -> Self:
        """What a declaration describes, as it was when `to_bytes` gave `data`; empty without. Raises DataLossError."""
        sums = NoisedSums.from_bytes(data, scale) if data else NoisedSums(scale, spec.labels)
        learner = cls(sums, spec.head, spec.privacy.sample_noise)
        learner.declare(spec.labels)
        return learner

    @property
    def labels(self) -> Sequence[str]:
        """See Learner; all are declared."""
        return self._sums.labels

    @property
    def count_C(self) -> npt.NDArray[np.int64]:  # noqa: N802  # axes
        """See Learner; with noise, and of the last release."""
        return counts(self._sums)

    @property
    def samples(self) -> int:
        """See Learner; exact, of the last release: that samples were sent is not hidden."""
        return self._sums.samples

    @property
    def inexact_because(self) -> str:
        """See Learner."""
        return "noise was added to what was learned (privacy.tier dp)"

    @property
    def noise_share(self) -> float:
        """See Learner; for classes alike."""
        return self._sums.noise_share

    @property
    def inseparable_because(self) -> str:
        """See Learner. So no keyed hash of a contribution is kept either: it would be exact."""
        return "noise was added to what was learned, so that no part of it can be subtracted"

    def integrate(self, quantised_Bd: QuantisedBd, labels: Truth, *, origin: Origin | None = None) -> None:
        """See Learner; nothing of it shows before the next release."""
        self._sums.add(quantised_Bd, single_labels(labels))

    def declare(self, labels: Sequence[str]) -> None:
        """See Learner."""
        self._sums.declare([label for label in labels if label not in self._sums.labels])

    def release(self) -> bool:
        """See Learner."""
        released = self._sums.release(noise=self._noise)
        self._noise = self._next_noise
        return released

    def learned(self) -> Learned:
        """See Learner; of the last release."""
        return LearnedNoised(self._sums.copy(), self._head.kind, self._head.regularization)

    def configure(self, spec: ModelSpec) -> None:
        """See Learner. Less noise holds from the release after the next on: what waits was taken in under more."""
        self._head, self._next_noise = spec.head, spec.privacy.sample_noise
        self._noise = max(self._noise, self._next_noise) if self._sums.waiting else self._next_noise

    def revised(self, learned: Learned) -> Learned:
        """See Learner."""
        assert isinstance(learned, LearnedNoised), "it was made here"
        return LearnedNoised(learned.sums, self._head.kind, self._head.regularization)

    def to_bytes(self) -> bytes:
        """See Learner; what was released alone."""
        return self._sums.to_bytes()


class LearnedNoised(Learned):
    """Released sums of one moment."""

    def __init__(self, sums: NoisedSums, head: str, regularization: Literal["auto"] | float) -> None:
        self.sums = sums
        self._head = head
        self._regularization: Literal["auto"] | float = regularization

    @property
    def labels(self) -> Sequence[str]:
        """See Learned."""
        return self.sums.labels

    @property
    def count_C(self) -> npt.NDArray[np.int64]:  # noqa: N802  # axes
        """See Learned; with noise."""
        return counts(self.sums)

    @property
    def samples(self) -> int:
        """See Learned."""
        return self.sums.samples

    def digest(self) -> str:
        """See Learned."""
        return hashlib.sha256(self.sums.to_bytes()).hexdigest()

    def solve(self, *, hint: float | None = None) -> Solution:
        """See Learned; always exact, so `hint` is unused: heads are rare where each needs a release."""
        return Solution(head=solve_noised(self.sums, self._head, self._regularization))


def counts(sums: NoisedSums) -> npt.NDArray[np.int64]:
    """n as it may be told: whole, and never below 0."""
    return np.maximum(sums.count_C, 0).astype(np.int64)
