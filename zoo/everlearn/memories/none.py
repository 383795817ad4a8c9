"""The memory of recipes whose weights are all they keep."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Self

import numpy as np
import numpy.typing as npt

from everlearn.errors import InputError, InvalidError
from everlearn.labels import Labels
from everlearn.memories import _state
from everlearn.memories.base import Memory, Origin, Replayed
from everlearn.spec.model import Memory as Declared
from everlearn.sums import Sums
from everlearn.values import QuantisedBd

KIND: Final = "none"


class Nothing(Memory):
    """Which classes came, and how often: nothing of a feature. What plain fine-tuning and regularisers such as EWC
    (Kirkpatrick et al. 2017) keep beside weights."""

    def __init__(self, dim: int, labels: Labels, seen_C: npt.NDArray[np.int64], declared: Declared) -> None:
        if dim < 1:
            raise InvalidError(f"dim is {dim}; it must be at least 1", field="dim")
        self._dim = dim
        self._labels = labels
        self._seen_C = seen_C
        self._declared = declared

    @classmethod
    def create(cls, dim: int, labels: Sequence[str], declared: Declared | None = None) -> Self:
        """See Memory."""
        return cls(dim, Labels(labels), np.zeros(len(labels), np.int64), _state.declared_as(KIND, declared))

    def declare(self, labels: Sequence[str]) -> None:
        """See Memory."""
        self._labels.declare(labels)
        self._make_room()

    def integrate(
        self,
        quantised_Bd: QuantisedBd,
        labels: Sequence[str],
        *,
        origin: Origin | None = None,
        logits_BC: npt.NDArray[np.float32] | None = None,
    ) -> None:
        """See Memory."""
        self._labels.check_batch(quantised_Bd, labels, self._dim)
        class_B = self._labels.take(labels)
        self._make_room()
        self._seen_C += np.bincount(class_B, minlength=len(self._labels))

    def draw(self, count: int, random: np.random.Generator) -> Replayed:
        """See Memory: no rows."""
        return Replayed(quantised_Rd=np.empty((0, self._dim), np.int16), class_R=np.empty(0, np.int64))

    @property
    def dim(self) -> int:
        """See Memory."""
        return self._dim

    @property
    def labels(self) -> list[str]:
        """See Memory."""
        return list(self._labels)

    @property
    def seen_C(self) -> npt.NDArray[np.int64]:  # noqa: N802  # axes
        """See Memory."""
        return self._seen_C.copy()

    @property
    def is_exact(self) -> bool:
        """See Memory: there are no sums."""
        return False

    @property
    def sums(self) -> Sums:
        """See Memory: of no samples."""
        return Sums(self._dim, list(self._labels))

    def configure(self, declared: Declared) -> None:
        """See Memory."""
        self._declared = _state.declared_as(KIND, declared, self._declared)

    def forget_class(self, label: str) -> None:
        """See Memory: its count."""
        if label not in self._labels:
            raise InputError(f"no class {label!r} here", field="label")
        self._seen_C[self._labels.index(label)] = 0

    def to_bytes(self) -> bytes:
        """See Memory."""
        declared = self._declared.model_dump(mode="json", exclude_none=True)
        state = {"declared": declared, "dim": self._dim, "labels": list(self._labels)}
        return _state.dump(KIND, state, {"seen": self._seen_C})

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """See Memory."""
        state, arrays = _state.parse(KIND, data)
        with _state.sealed():
            labels = Labels(state["labels"])
            seen_C = _state.column(arrays, "seen", np.int64, (len(labels),))
            return cls(int(state["dim"]), labels, seen_C, _state.declared_from(KIND, state))

    def _make_room(self) -> None:
        self._seen_C = np.pad(self._seen_C, (0, len(self._labels) - len(self._seen_C)))
