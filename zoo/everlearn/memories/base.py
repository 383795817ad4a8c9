"""What a memory is: what a model keeps of the features it has learned. It only ever receives features."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Self

from everlearn.sums import Sums
from everlearn.values import QuantisedBd


class Memory(ABC):
    """Bounded, serialisable, and free of samples."""

    @classmethod
    @abstractmethod
    def create(cls, dim: int, labels: Sequence[str]) -> Self:
        """An empty memory of `dim` features whose first classes are `labels`."""

    @abstractmethod
    def integrate(self, quantised_Bd: QuantisedBd, labels: Sequence[str]) -> None:
        """Learns a batch; B may be 0. Raises InputError where lengths disagree."""

    @property
    @abstractmethod
    def sums(self) -> Sums:
        """What the closed-form heads need; live, not a copy."""

    @abstractmethod
    def to_bytes(self) -> bytes:
        """The whole state, versioned and self-describing; `from_bytes(to_bytes())` is bit-identical."""

    @classmethod
    @abstractmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Raises DataLossError for bytes that are not a memory."""
