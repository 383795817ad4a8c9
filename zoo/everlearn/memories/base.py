"""What a memory is: what a model keeps of the features it has learned. It only ever receives features.

Axes: B samples in a batch, R replayed samples, C classes, d features.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

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
    def integrate(
        self,
        quantised_Bd: QuantisedBd,
        labels: Sequence[str],
        *,
        origin: Origin | None = None,
        logits_BC: npt.NDArray[np.float32] | None = None,
    ) -> None:
        """Learns a batch; B may be 0. Raises InputError where lengths disagree.

        `logits_BC`: the live scores of the batch over the labels known before it, for memories that keep them.
        """

    @abstractmethod
    def draw(self, count: int, random: np.random.Generator) -> Replayed:
        """At most `count` rows for a gradient step, classes alike; fewer, or none, where there is nothing to give."""

    @property
    @abstractmethod
    def sums(self) -> Sums:
        """What the closed-form heads need, over all that is kept; live where the memory is sums. Its labels are the
        memory's, in order of arrival."""

    @abstractmethod
    def configure(self, declared: Declared) -> None:
        """Takes options that change in place (capacity, decay, ttl_s ...); drops at once what is no longer allowed."""

    @abstractmethod
    def to_bytes(self) -> bytes:
        """The whole state, versioned and self-describing; `from_bytes(to_bytes())` is bit-identical."""

    @classmethod
    @abstractmethod
    def from_bytes(cls, data: bytes) -> Self:
        """The state that `to_bytes` wrote, options included. Raises DataLossError for bytes that are not a memory."""
