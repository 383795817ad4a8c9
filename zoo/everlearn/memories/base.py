"""What a memory is: what a model keeps of the features it has learned. It only ever receives features.

Axes: B samples in a batch, R replayed samples, C classes, d features.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from everlearn.errors import InputError, PreconditionError
from everlearn.spec.model import Memory as Declared
from everlearn.sums import Sums
from everlearn.values import QuantisedBd


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where a batch comes from, for memories that keep single features."""

    client: str = ""
    time_s: float = 0.0
    """Seconds since the epoch when it was learned; given, so that a replayed batch is learned the same way."""


@dataclass(frozen=True, kw_only=True)
class Replayed:
    """Rows that a memory gives back to a gradient step; R may be 0."""

    quantised_Rd: QuantisedBd
    class_R: npt.NDArray[np.int64]
    """Index into the memory's labels."""
    logits_RC: npt.NDArray[np.float32] | None = None
    """The scores each row had when it was learned, NaN for classes that came later; None where none are kept."""


class Memory(ABC):
    """Bounded, serialisable, and free of samples."""

    @classmethod
    @abstractmethod
    def create(cls, dim: int, labels: Sequence[str], declared: Declared | None = None) -> Self:
        """An empty memory of `dim` features whose first classes are `labels`. `declared`: its options."""

    @abstractmethod
    def declare(self, labels: Sequence[str]) -> None:
        """Makes classes that have no samples yet, in this order.

        Raises InputError for a label that is repeated, known or malformed; then none is added.
        """

    @abstractmethod
    def integrate(
        self,
        quantised_Bd: QuantisedBd,
        labels: Sequence[str],
        *,
        origin: Origin | None = None,
        logits_BC: npt.NDArray[np.float32] | None = None,
    ) -> None:
        """Learns a batch; B may be 0. Raises InputError where lengths disagree; nothing is learned then.

        `logits_BC`: the live scores of the batch over the first C of the labels known before it, for memories that keep
        them; others leave them.
        """

    @abstractmethod
    def draw(self, count: int, random: np.random.Generator) -> Replayed:
        """At most `count` rows for a gradient step, classes alike; fewer, or none, where there is nothing to give."""

    @property
    @abstractmethod
    def dim(self) -> int:
        """d."""

    @property
    @abstractmethod
    def labels(self) -> list[str]:
        """In order of arrival; append-only."""

    @property
    @abstractmethod
    def seen_C(self) -> npt.NDArray[np.int64]:  # noqa: N802  # axes
        """Samples integrated of each class, whether or not anything of them is still kept; none of a forgotten one."""

    @property
    def seen(self) -> int:
        """Samples integrated, of all classes."""
        return int(self.seen_C.sum())

    @property
    @abstractmethod
    def is_exact(self) -> bool:
        """Whether `sums` are, bit for bit, those of all that was integrated: so that order leaves no trace, and heads
        equal joint training."""

    @property
    def inexact_because(self) -> str:
        """Why `is_exact` is false, in words; empty where it is true."""
        return "" if self.is_exact else "a part alone of what was learned is kept"

    @property
    @abstractmethod
    def sums(self) -> Sums:
        """What the closed-form heads need, over all that is kept; live where the memory is sums, otherwise made of the
        rows. Its labels are the memory's, in order of arrival. Not to be changed by the caller."""

    @abstractmethod
    def configure(self, declared: Declared) -> None:
        """Takes options that change in place (capacity, decay, ttl_s ...); drops at once what is no longer allowed.

        Raises InvalidError for what does not change in place (kind, precision).
        """

    @property
    def ttl_s(self) -> float | None:
        """Seconds after which what is kept must go; None where nothing has an end."""
        return None

    def expire(self, now_s: float) -> int:
        """Drops what is older than declared, and says how many rows. `integrate` does so by itself; this is for streams
        that rest. Not abstract, because most memories keep nothing that has an age.
        """
        return 0

    def forget_class(self, label: str) -> None:
        """Deletes a class: nothing of its samples is kept, and where `is_exact`, what remains is bit for bit a memory
        that was declared the label and never met a sample of it. The label keeps its place: heads and scores go by it.

        Raises InputError for an unknown label, PreconditionError (reason NOT_SEPARABLE) where the memory cannot: not
        abstract, because most cannot.
        """
        if label not in self.labels:
            raise InputError(f"no class {label!r} here", field="label")
        raise PreconditionError(
            f"this memory adds all classes up and cannot take {label!r} out again; per_class_statistics can",
            reason="NOT_SEPARABLE",
        )

    @property
    def subtracts(self) -> bool:
        """Whether `subtract` is exact now: this is all that was integrated, and nothing of it has aged."""
        return False

    def subtract(self, other: Memory) -> None:
        """Takes out what `other`, a memory of the same kind, holds: what is left is bit for bit a memory that never
        integrated it. Labels stay. Whole or not at all.

        Raises InvalidError where `other` cannot be a part of this, PreconditionError (reasons NOT_SEPARABLE,
        INEXACT_SUMS) where the memory cannot: not abstract, because some cannot.
        """
        raise PreconditionError(
            "this memory keeps a choice of what was learned, not the sums of it: nothing can be subtracted from it",
            reason="NOT_SEPARABLE",
        )

    def merge(self, other: Memory) -> None:
        """Adds what `other`, a memory of the same kind, holds: as if its samples had been integrated here. Whole or not
        at all.

        Raises InvalidError for another kind or dimension, PreconditionError (reasons NOT_SEPARABLE, INEXACT_SUMS,
        MEMORY_FULL): not abstract, because some cannot.
        """
        raise PreconditionError(
            "this memory keeps a choice of what was learned, not the sums of it: nothing can be added to it at once",
            reason="NOT_SEPARABLE",
        )

    def forget_client(self, client: str) -> int:
        """Drops the rows that came from a client, and says how many. Not abstract, because most keep no rows."""
        return 0

    @property
    def held_bytes(self) -> int:
        """What `set_down` would free now."""
        return 0

    def set_down(self, recall: Callable[[], bytes]) -> int:
        """Lets go of what is large until it is needed, and gives the bytes that this frees. `recall` reads what
        `to_bytes` would write now; whoever needs it calls that, on their thread. Not abstract, because few are large.
        """
        return 0

    def digest(self) -> str:
        """sha256 of the state, to tell whether it has changed; memories of exact sums forgive another order."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    @abstractmethod
    def to_bytes(self) -> bytes:
        """The whole state, versioned and self-describing; `from_bytes(to_bytes())` is bit-identical."""

    @classmethod
    @abstractmethod
    def from_bytes(cls, data: bytes) -> Self:
        """The state that `to_bytes` wrote, options included. Raises DataLossError for bytes that are not a memory."""
