"""What a learner is: it takes a stream of quantised features, and can say at any moment what it has learned.

Axes: B samples in a batch, C classes, d features (or values at the cut, where a part of the backbone learns).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
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
    def waits_for(self) -> str:
        """What has to come until anything can be acknowledged as durable, however long the stream rests, in words;
        empty where that is nothing."""
        return ""

    @property
    def patience_s(self) -> float:
        """Seconds without a batch after which `settle` is to be called while samples are held; infinite for never."""
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
    def noise_share(self) -> float:
        """Standard deviation of the noise that hides samples, on a class's mean and relative to its length; 0 where
        nothing is hidden so."""
        return 0.0

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

    def revised(self, learned: Learned) -> Learned:
        """An earlier `learned` of this learner, as its present options solve it. Not abstract, because what learns by
        steps solves nothing."""
        return learned

    # Not abstract: most learners have nothing to hide in what they tell.
    def release(self) -> bool:
        """Called once before each commit: what was integrated since the last is hidden in noise and counts from now on;
        false where there is nothing to release. Until then nothing that can be read shows it."""
        return False

    @abstractmethod
    def to_bytes(self) -> bytes:
        """The whole state, versioned and self-describing; what made the learner goes on from it bit for bit."""

    @property
    def inseparable_because(self) -> str:
        """Why what one client contributed cannot be subtracted exactly (`alone`, `subtract`); empty where it can."""
        return "it keeps no sums of all that was learned, from which a part could be subtracted"

    def alone(self, data: bytes = b"") -> Learner:
        """An empty learner of the same kind and scale, to `integrate` what is to be subtracted, batch by batch; or as
        one was when its `to_bytes` gave `data`.

        Raises PreconditionError (reason NOT_SEPARABLE) where nothing can be, DataLossError for other bytes.
        """
        raise not_separable(self)

    def subtract(self, other: Learner) -> None:
        """Takes out what `other`, from `alone`, has learned: what is left is bit for bit a learner that never met it.
        Whole or not at all; labels stay.

        Raises InvalidError where it cannot be a part of this, PreconditionError (reason NOT_SEPARABLE).
        """
        raise not_separable(self)

    def merge(self, other: Learner) -> None:
        """Adds what `other`, from `alone`, has learned: what is here is then bit for bit a learner that met all of it.
        Whole or not at all. Raises as `subtract`, and PreconditionError (reason MEMORY_FULL)."""
        raise not_separable(self)

    def forget_class(self, label: str) -> None:
        """Takes out all samples of a class; its label keeps its place. Raises InputError for an unknown label,
        PreconditionError (reason NOT_SEPARABLE) where classes are not kept apart."""
        raise PreconditionError(
            "this model does not keep its classes apart; memory.kind: per_class_statistics does", reason="NOT_SEPARABLE"
        )

    def forget_client(self, client: str, *, before: bytes | None = None) -> int:
        """Drops single features that came from a client, where some are kept; returns how many samples'. What learned
        of it by steps goes back to where it was `before` it came (see `rewinding`), or to the beginning, and learns
        again what is kept of others; raises InputError or DataLossError where it was never there, and nothing has
        changed then."""
        return 0

    def expire(self, now_s: float) -> int:
        """Drops features that have come to their end by `now_s`, seconds since the epoch; returns how many samples'.
        Each batch does so, too; this is for streams that rest."""
        return 0

    def settle(self) -> None:
        """The stream rests or ends: what waits for more samples goes on with those that came."""
        return

    @property
    def held_bytes(self) -> int:
        """What `set_down` would free now."""
        return 0

    def set_down(self, recall: Callable[[], bytes]) -> int:
        """Lets go of what is large until it is needed, and gives the bytes that this frees: for a learner at rest, of
        which `recall` reads what `to_bytes` would write now. Whoever needs it waits for that. Not abstract, because
        what learns by steps is never large here.
        """
        return 0

    def close(self) -> None:
        """Lets go of processes and sessions. Nothing is kept that `to_bytes` has not given."""
        return


def not_separable(learner: Learner) -> PreconditionError:
    """What subtracting meets where it cannot be exact."""
    return PreconditionError(
        f"what one client contributed cannot be subtracted from this model: {learner.inseparable_because}",
        reason="NOT_SEPARABLE",
    )
