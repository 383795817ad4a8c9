"""The append-only table of a memory's classes, and what a batch for it must look like."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, Self

import numpy as np
import numpy.typing as npt

from everlearn.errors import InputError
from everlearn.values import QuantisedBd

MAX_LABEL_BYTES: Final = 256
"""Of a label's UTF-8 form."""


class Labels:
    """Labels in order of arrival, each with its index, which is its own for good.

    >>> table = Labels(["cat"])
    >>> table.take(["dog", "cat", "dog"]).tolist(), list(table)
    ([1, 0, 1], ['cat', 'dog'])
    """

    def __init__(self, labels: Sequence[str] = ()) -> None:
        self._labels: list[str] = []
        self._index: dict[str, int] = {}
        self.declare(labels)

    def __len__(self) -> int:
        return len(self._labels)

    def __iter__(self) -> Iterator[str]:
        return iter(self._labels)

    def __getitem__(self, index: int) -> str:
        return self._labels[index]

    def __contains__(self, label: object) -> bool:
        return label in self._index

    def __eq__(self, other: object) -> bool:
        return self._labels == other._labels if isinstance(other, Labels) else NotImplemented

    __hash__ = None  # type: ignore[assignment]  # mutable, as list

    def index(self, label: str) -> int:
        """Place of a known label."""
        return self._index[label]

    def declare(self, labels: Sequence[str]) -> None:
        """Adds labels in this order. Raises InputError for one that is repeated, known or malformed; adds none then."""
        for position, label in enumerate(labels):
            check_label(label, position)
        if len(set(labels)) < len(labels) or not self._index.keys().isdisjoint(labels):
            raise InputError("a label is declared twice; declare each once", field="labels")
        self._append(labels)

    def take(self, labels: Sequence[str]) -> npt.NDArray[np.intp]:
        """Index of each; a new label, checked before by `check_batch`, becomes the next."""
        self._append([label for label in dict.fromkeys(labels) if label not in self._index])
        return np.fromiter((self._index[label] for label in labels), np.intp, len(labels))

    def copy(self) -> Self:
        """An independent copy."""
        twin = type(self).__new__(type(self))
        twin._labels, twin._index = self._labels.copy(), self._index.copy()
        return twin

    def check_batch(self, quantised_Bd: QuantisedBd, labels: Sequence[str], dim: int) -> None:
        """Raises InputError, by field, for features that are not int16 [B, dim] or labels that do not fit them."""
        if quantised_Bd.dtype != np.int16:
            raise InputError(f"quantised features are {quantised_Bd.dtype}; they must be int16", field="features")
        if quantised_Bd.ndim != 2 or quantised_Bd.shape[1] != dim:
            raise InputError(f"features have shape {quantised_Bd.shape}; it must be [B, {dim}]", field="features")
        if isinstance(labels, str) or len(labels) != len(quantised_Bd):
            raise InputError(f"{len(labels)} labels for {len(quantised_Bd)} samples; each needs one", field="labels")
        for position, label in enumerate(labels):
            if not isinstance(label, str) or label not in self._index:
                check_label(label, position)

    def _append(self, labels: Sequence[str]) -> None:
        for label in labels:
            self._index[label] = len(self._labels)
            self._labels.append(label)


def check_label(label: object, position: int) -> None:
    """Raises InputError for what cannot be a label; `position` is its place in the caller's list."""
    field = f"labels[{position}]"
    if not isinstance(label, str):
        raise InputError(f"label is a {type(label).__name__}; it must be a string", field=field)
    try:
        size = len(label.encode())
    except UnicodeEncodeError:
        raise InputError("label is not valid Unicode (lone surrogate)", field=field) from None
    if not 0 < size <= MAX_LABEL_BYTES:
        raise InputError(f"label has {size} bytes of UTF-8; it must have 1 to {MAX_LABEL_BYTES}", field=field)
