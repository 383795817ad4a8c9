"""The default memory: exact sums, from which every closed-form head equals joint training on all that was learned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np
import numpy.typing as npt

from everlearn.memories.base import Memory, Origin, Replayed
from everlearn.spec.model import Memory as Declared
from everlearn.sums import Sums
from everlearn.values import QuantisedBd


class Statistics(Memory):
    """n[C], S[C, d] and G[d, d]. Its size depends on features and classes, never on samples; order leaves no trace."""

    def __init__(self, sums: Sums) -> None:
        self._sums = sums

    @classmethod
    def create(cls, dim: int, labels: Sequence[str], declared: Declared | None = None) -> Self:
        """See Memory."""
        return cls(Sums(dim, labels))

    def integrate(
        self,
        quantised_Bd: QuantisedBd,
        labels: Sequence[str],
        *,
        origin: Origin | None = None,
        logits_BC: npt.NDArray[np.float32] | None = None,
    ) -> None:
        """See Memory. PreconditionError (reason MEMORY_FULL) where sums would stop being exact."""
        self._sums.add(quantised_Bd, labels)

    def draw(self, count: int, random: np.random.Generator) -> Replayed:
        """See Memory."""
        return Replayed(quantised_Rd=np.empty((0, self._sums.dim), np.int16), class_R=np.empty(0, np.int64))

    def configure(self, declared: Declared) -> None:
        """See Memory."""

    @property
    def sums(self) -> Sums:
        """See Memory."""
        return self._sums

    def to_bytes(self) -> bytes:
        """See Memory; the format is that of `Sums.to_bytes`."""
        return self._sums.to_bytes()

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """See Memory."""
        return cls(Sums.from_bytes(data))
