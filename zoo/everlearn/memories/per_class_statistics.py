"""Exact sums with one Gram matrix a class, so that a class can be deleted as if it had never been there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Self

import numpy as np
import numpy.typing as npt

from everlearn.errors import InputError, InvalidError
from everlearn.memories import _state
from everlearn.memories._gaussian import GaussianReplay
from everlearn.memories.base import Memory, Origin, Replayed
from everlearn.spec.model import Memory as Declared
from everlearn.sums import Sums
from everlearn.values import QuantisedBd

KIND: Final = "per_class_statistics"
_CLASS: Final = "class "
"""Begins the name of an array that holds a class's sums."""


class PerClassStatistics(Memory):
    """n, S and G of each class (AIR, Fang et al. 2024), and their total.

    What exact deletion costs at d features: 8 d^2 bytes of memory a class with samples, and as much once more for the
    total (13 MB a class at d = 1280, and 3.3 MB as it was last saved); 3.3 MB a class on disk at each commit; and a
    pass over that matrix for each class in a batch.
    """

    def __init__(
        self,
        total: Sums,
        of: dict[str, Sums],
        declared: Declared | None = None,
        *,
        replay: GaussianReplay | None = None,
    ) -> None:
        """`of`: the sums of each class with samples; `total` is what they add up to."""
        self._total = total
        self._of = of
        self._declared = _state.declared_as(KIND, declared)
        self._replay = replay or GaussianReplay()
        self._saved: dict[str, bytes] = {}

    @classmethod
    def create(cls, dim: int, labels: Sequence[str], declared: Declared | None = None) -> Self:
        """See Memory."""
        return cls(Sums(dim, labels), {}, declared)

    def declare(self, labels: Sequence[str]) -> None:
        """See Memory."""
        self._total.declare(labels)

    def integrate(
        self,
        quantised_Bd: QuantisedBd,
        labels: Sequence[str],
        *,
        origin: Origin | None = None,
        logits_BC: npt.NDArray[np.float32] | None = None,
    ) -> None:
        """See Memory. PreconditionError (reason MEMORY_FULL) where sums would stop being exact."""
        self._total.add(quantised_Bd, labels)  # refuses before anything is added; a class cannot be fuller than all
        members: dict[str, list[int]] = {}
        for row, label in enumerate(labels):
            members.setdefault(label, []).append(row)
        for label, rows in members.items():
            if label not in self._of:
                self._of[label] = Sums(self._total.dim)
            self._of[label].add(quantised_Bd[rows], [label] * len(rows))
            self._saved.pop(label, None)

    def draw(self, count: int, random: np.random.Generator) -> Replayed:
        """See Memory; rows that never were, of the covariance that the classes share: see GaussianReplay."""
        return self._replay.draw(self._total, self.seen, count, random, bits=self._declared.bits)

    @property
    def dim(self) -> int:
        """See Memory."""
        return self._total.dim

    @property
    def labels(self) -> list[str]:
        """See Memory."""
        return self._total.labels

    @property
    def seen_C(self) -> npt.NDArray[np.int64]:  # noqa: N802  # axes
        """See Memory."""
        return self._total.count_C.astype(np.int64)

    @property
    def is_exact(self) -> bool:
        """See Memory."""
        return True

    @property
    def sums(self) -> Sums:
        """See Memory; live."""
        return self._total

    @property
    def subtracts(self) -> bool:
        """See Memory."""
        return True

    def subtract(self, other: Memory) -> None:
        """See Memory."""
        other = _state.alike(other, type(self))
        foreign = [label for label in other._of if label not in self._of and other._of[label].samples]
        if foreign:
            raise InvalidError(f"cannot subtract: class {foreign[0]!r} has no samples here", field="labels")
        left = {label: self._of[label].copy() for label in other._of if label in self._of}
        for label, sums in left.items():
            sums.subtract(other._of[label])
        self._total.subtract(other._total)
        for label, sums in left.items():
            if sums.samples:
                self._of[label] = sums
            else:
                del self._of[label]
            self._saved.pop(label, None)
        self._replay = GaussianReplay()  # its covariance knew them

    def merge(self, other: Memory) -> None:
        """See Memory."""
        other = _state.alike(other, type(self))
        self._total.merge(other._total)  # refuses before anything is added
        for label, sums in other._of.items():
            if label in self._of:
                self._of[label].merge(sums)
            else:
                self._of[label] = sums.copy()
            self._saved.pop(label, None)

    def sums_of(self, label: str) -> Sums:
        """A copy of one class's sums. Raises InputError for an unknown label."""
        self._check_known(label)
        return self._of[label].copy() if label in self._of else Sums(self._total.dim, [label])

    def configure(self, declared: Declared) -> None:
        """See Memory."""
        self._declared = _state.declared_as(KIND, declared)

    def forget_class(self, label: str) -> None:
        """See Memory; exact, also on disk from the next commit on."""
        self._check_known(label)
        gone = self._of.pop(label, None)
        if gone is not None:
            self._total.subtract(gone)
        self._saved.pop(label, None)
        self._replay = GaussianReplay()  # its covariance knew the class

    def digest(self) -> str:
        """See Memory; of the total, which all that is kept adds up to."""
        return self._total.digest()

    def to_bytes(self) -> bytes:
        """See Memory."""
        labels = self._total.labels
        declared = self._declared.model_dump(mode="json", exclude_none=True)
        state = {"declared": declared, "dim": self._total.dim, "labels": labels}
        for label, sums in self._of.items():
            if label not in self._saved:
                self._saved[label] = sums.to_bytes()
        of = [label for label in labels if label in self._of]
        parts = {f"{_CLASS}{label}": np.frombuffer(self._saved[label], np.uint8) for label in of}
        return _state.dump(KIND, state, parts | self._replay.arrays)

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """See Memory."""
        state, parts = _state.parse(KIND, data)
        with _state.sealed():
            total = Sums(int(state["dim"]), state["labels"])
            names = [name for name in parts if name.startswith(_CLASS)]
            of = {name.removeprefix(_CLASS): Sums.from_bytes(parts[name].tobytes()) for name in names}
            if any(sums.labels != [label] or label not in total.labels for label, sums in of.items()):
                raise ValueError("its header contradicts itself")
            for sums in of.values():
                total.merge(sums)
            replay = GaussianReplay.restored(parts, total.dim)
            return cls(total, of, _state.declared_from(KIND, state), replay=replay)

    def _check_known(self, label: str) -> None:
        if label not in self._total.labels:
            raise InputError(f"no class {label!r} here", field="label")
