"""Exact integer sums of quantised features: per class count n and feature sum S, and one Gram matrix G.

Placeholder signatures; the room's owner fills them in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np
import numpy.typing as npt

from everlearn.values import QuantisedBd


class Sums:
    """n[C], S[C, d], G[d, d] as exact integers, with labels in order of arrival."""

    labels: list[str]
    count_C: npt.NDArray[np.int64]
    sum_Cd: npt.NDArray[np.float64]
    gram_dd: npt.NDArray[np.float64]

    def __init__(self, dim: int, labels: Sequence[str] = ()) -> None: ...

    def add(self, quantised_Bd: QuantisedBd, labels: Sequence[str]) -> None:
        """Adds a batch."""

    def merge(self, other: Sums) -> None:
        """Adds another memory's sums."""

    def subtract(self, other: Sums) -> None:
        """Takes sums away again, bit for bit."""

    def copy(self) -> Self:
        """An independent copy, to solve on while learning goes on."""
        raise NotImplementedError

    def digest(self) -> str:
        """sha256 of the canonical form."""
        raise NotImplementedError

    def to_bytes(self) -> bytes:
        """Serialised."""
        raise NotImplementedError

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Parsed."""
        raise NotImplementedError
