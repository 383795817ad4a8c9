"""What a learner is: it takes a stream of quantised features, and can say at any moment what it has learned.

Axes: B samples in a batch, C classes, d features (or values at the cut, where a part of the backbone learns).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from everlearn.backbones.tail import Tail
from everlearn.errors import PreconditionError
from everlearn.memories.base import Origin
from everlearn.spec.model import ModelSpec
from everlearn.sums import Sums
from everlearn.truth import Truth
from everlearn.values import FeatureScale, LinearHead, QuantisedBd


@dataclass(frozen=True, kw_only=True)
class Solution:
    """What answers predictions: scores = head(tail(values)), or head(features) where no part of the backbone moves."""

    head: LinearHead
    tail: Tail | None = None


class Learned(ABC):
    """What has been learned up to one moment. A value: batches that come later do not change it."""

    @property
    @abstractmethod
    def labels(self) -> Sequence[str]:
        """In order of arrival."""

    @property
    @abstractmethod
    def count_C(self) -> npt.NDArray[np.int64]:  # noqa: N802  # axes
        """Samples learned of each label."""

    @property
    def samples(self) -> int:
        """Learned, of all labels."""
        return int(self.count_C.sum())

    @property
    def figures(self) -> Mapping[str, float]:
        """What the last steps were like, for the version's record: loss, gradient norm ... Empty in closed form."""
        return {}

    @abstractmethod
    def digest(self) -> str:
        """sha256 of all of it: equal digests mean equal predictions."""

    @abstractmethod
    def solve(self, *, hint: float | None = None) -> Solution:
        """The classifier. `hint`: regularization of an earlier one, for a quick solve (see Head).

        Raises PreconditionError (reason EMPTY_MEMORY) where nothing has been learned.
        """


class Learner(ABC):
    """Learns a model's stream. One thread at a time; calls may take as long as a batch of gradient steps."""

    @property
    @abstractmethod
    def labels(self) -> Sequence[str]:
        """In order of arrival; append-only."""

    @property
    @abstractmethod
    def count_C(self) -> npt.NDArray[np.int64]:  # noqa: N802  # axes
        """Samples learned of each label."""

    @property
    def samples(self) -> int:
        """Learned, of all labels."""
        return int(self.count_C.sum())

    @property
    def holds_samples(self) -> bool:
        """Whether something that was integrated is held in RAM alone and would not survive in `to_bytes` yet: then
        nothing may be acknowledged as durable."""
        return False

    @property
    def patience_s(self) -> float:
        """Seconds without a batch after which `settle` is to be called while samples are held."""
        return 0.0

    @property
    def sums(self) -> Sums:
        """What closed forms need, live. Raises PreconditionError (reason NO_SUMS) for a learner that keeps none."""
        raise PreconditionError(
            "this model keeps no sums of its features; declare memory.kind: statistics for that", reason="NO_SUMS"
        )

    @property
    def inexact_because(self) -> str:
        """Why heads are not those of joint training on all that was learned; empty where they are, and for steps."""
        return ""

    @property
    def ttl_s(self) -> float | None:
        """Seconds after which features that are kept must go; None where none are, or they have no end."""
        return None

    @property
    def sums_scale(self) -> FeatureScale:
        """What the integers of `sums` stand for. Raises as `sums`."""
        _ = self.sums
        raise NotImplementedError(f"{type(self).__name__} has sums and must say their scale")

    @abstractmethod
    def integrate(self, quantised_Bd: QuantisedBd, labels: Truth, *, origin: Origin | None = None) -> None:
        """Learns a batch; B may be 0. Whole or not at all.

        Raises InputError where lengths disagree or the truth is not of the learner's task, ResourceError where the
        memory is full, PreconditionError (reason NOT_FINITE) where a gradient step would lose the weights,
        UnavailableError where a trainer cannot go on.
        """

    @abstractmethod
    def declare(self, labels: Sequence[str]) -> None:
        """Gives labels their indices before any sample of theirs; known ones stay as they are."""

    @abstractmethod
    def learned(self) -> Learned:
        """A consistent copy."""

    @abstractmethod
    def configure(self, spec: ModelSpec) -> None:
        """Takes options that change in place (regularization, learning rate, capacity ...)."""

    @abstractmethod
    def to_bytes(self) -> bytes:
        """The whole state, versioned and self-describing; what made the learner goes on from it bit for bit."""

    def expire(self, now_s: float) -> int:
        """Drops features that have come to their end by `now_s`, seconds since the epoch; returns how many samples'.
        Each batch does so, too; this is for streams that rest."""
        return 0

    def settle(self) -> None:
        """The stream rests or ends: what waits for more samples goes on with those that came."""
        return

    def close(self) -> None:
        """Lets go of processes and sessions. Nothing is kept that `to_bytes` has not given."""
        return
