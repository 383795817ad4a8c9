"""Exact integer sums of quantised features: per class count n and feature sum S, and one Gram matrix G.

Features are integers (`FeatureScale`), and float64 adds integers exactly below 2^53. So the sums do not depend on
order, batching or sharding, merging is `+` and forgetting is `-`, bit for bit, while BLAS does the work.
By Cauchy-Schwarz no entry of G, and no partial sum of one, exceeds the largest diagonal entry; since an integer's
magnitude is at most its square, no entry of S does either. One check of the diagonal therefore guards all of it.

Memory: 8 d^2 + 8 C d bytes (C rounded up by at most 2 x): 13 MB at d = 1280 with ten classes. G is symmetric and only
its lower triangle is kept up to date. One writer; readers take a `copy()`.

Axes: B samples in a batch, C classes, d features.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any, Final, Self, TypeVar

import numpy as np
import numpy.typing as npt

from everlearn import _sums_format
from everlearn.errors import InputError, InvalidError, PreconditionError
from everlearn.linalg import add_gram
from everlearn.values import QuantisedBd

Float = npt.NDArray[np.float64]
Array = TypeVar("Array", bound=npt.NDArray[Any])

EXACT_LIMIT: Final = 2.0**53
"""Below this float64 holds every integer."""
MAX_LABEL_BYTES: Final = 256
"""Of a label's UTF-8 form."""
BLOCK_ROWS: Final = 256
"""Rows per BLAS call: bounds the float64 copy of a large batch (2.6 MB at d = 1280)."""


class Sums:
    """n[C], S[C, d], G[d, d] as exact integers, with labels in order of arrival.

    >>> sums = Sums(2)
    >>> sums.add(np.array([[1, 2], [3, 4]], np.int16), ["cat", "dog"])
    >>> sums.labels, sums.count_C.tolist(), sums.gram_dd.tolist()
    (['cat', 'dog'], [1, 1], [[10.0, 14.0], [14.0, 20.0]])
    """

    def __init__(self, dim: int, labels: Sequence[str] = ()) -> None:
        if dim < 1:
            raise InvalidError(f"dim is {dim}; it must be at least 1", field="dim")
        self._labels: list[str] = []
        self._index: dict[str, int] = {}
        self._count_C: npt.NDArray[np.int64] = np.zeros(0, np.int64)
        self._sum_Cd: Float = np.zeros((0, dim))
        self._lower_dd: Float = np.zeros((dim, dim), order="F")  # column-major, as BLAS updates it in place
        self.declare(labels)

    @property
    def dim(self) -> int:
        """d."""
        return len(self._lower_dd)

    @property
    def labels(self) -> list[str]:
        """In order of arrival; append-only."""
        return list(self._labels)

    @property
    def samples(self) -> int:
        """Samples learned, of all classes."""
        return int(self.count_C.sum())

    @property
    def count_C(self) -> npt.NDArray[np.int64]:  # noqa: N802  # axes
        """Samples per class: a live, read-only view."""
        return _read_only(self._count_C[: len(self._labels)])

    @property
    def sum_Cd(self) -> Float:  # noqa: N802  # axes
        """Feature sum per class: a live, read-only view."""
        return _read_only(self._sum_Cd[: len(self._labels)])

    @property
    def gram_lower_dd(self) -> Float:
        """Lower triangle of G, column-major, zero above the diagonal: a live, read-only view, as LAPACK wants it."""
        return _read_only(self._lower_dd.view())

    @property
    def gram_dd(self) -> Float:
        """G, both triangles: a copy (some milliseconds; solvers use `gram_lower_dd`)."""
        return self._lower_dd + np.tril(self._lower_dd, -1).T

    def declare(self, labels: Sequence[str]) -> None:
        """Makes classes that have no samples yet, in this order.

        Raises InputError for a label that is repeated, known or malformed; then none is added.
        """
        for position, label in enumerate(labels):
            _check_label(label, position)
        if len(set(labels)) < len(labels) or not self._index.keys().isdisjoint(labels):
            raise InputError("a label is declared twice; declare each once", field="labels")
        self._append(labels)

    def add(self, quantised_Bd: QuantisedBd, labels: Sequence[str]) -> None:
        """Adds a batch; B may be 0. A new label becomes the next class.

        Raises InputError for a wrong shape, dtype, number of labels or label, and PreconditionError (reason
        MEMORY_FULL) where sums would stop being exact. Nothing is added then.
        """
        self._check_batch(quantised_Bd, labels)
        squares_d = np.einsum("bd,bd->d", quantised_Bd, quantised_Bd, dtype=np.float64)
        self._check_room(squares_d)
        self._append([label for label in dict.fromkeys(labels) if label not in self._index])
        class_B = np.fromiter((self._index[label] for label in labels), np.intp, len(labels))
        for start in range(0, len(labels), BLOCK_ROWS):
            block = slice(start, start + BLOCK_ROWS)
            self._add_block(quantised_Bd[block].astype(np.float64, order="C"), class_B[block])

    def merge(self, other: Sums) -> None:
        """Adds another memory's sums: as if its samples had been added here.

        Raises InvalidError for another dimension, PreconditionError (reason MEMORY_FULL). Nothing is added then.
        """
        self._check_same_dim(other)
        self._check_room(other._lower_dd.diagonal())
        self._append([label for label in other._labels if label not in self._index])
        rows = [self._index[label] for label in other._labels]
        self._count_C[rows] += other.count_C
        self._sum_Cd[rows] += other.sum_Cd
        self._lower_dd += other._lower_dd

    def subtract(self, other: Sums) -> None:
        """Takes sums away again, bit for bit: as if their samples had never been added. Labels stay.

        Raises InvalidError where `other` cannot be part of this (unknown class, more samples than there are, or a
        remainder that no samples have); the state is unchanged then.
        """
        self._check_same_dim(other)
        missing = [
            label
            for label, count in zip(other._labels, other.count_C, strict=True)
            if count and label not in self._index
        ]
        if missing:
            raise InvalidError(f"cannot subtract: no class {missing[0]!r} here", field="labels")
        known = [position for position, label in enumerate(other._labels) if label in self._index]
        rows = [self._index[other._labels[position]] for position in known]
        count_C, sum_Cd = self.count_C.copy(), self.sum_Cd.copy()
        count_C[rows] -= other.count_C[known]
        sum_Cd[rows] -= other.sum_Cd[known]
        _check_remainder(count_C, sum_Cd, self._lower_dd.diagonal() - other._lower_dd.diagonal())
        self._count_C, self._sum_Cd = count_C, sum_Cd
        self._lower_dd -= other._lower_dd

    def copy(self) -> Self:
        """An independent copy, to solve on while learning goes on (1 ms at d = 1280)."""
        twin = type(self).__new__(type(self))
        twin._labels, twin._index = self._labels.copy(), self._index.copy()
        twin._count_C, twin._sum_Cd = self.count_C.copy(), self.sum_Cd.copy()
        twin._lower_dd = self._lower_dd.copy(order="F")
        return twin

    def __eq__(self, other: object) -> bool:
        """Same labels in the same order, same numbers. For equality whatever the order, compare `digest()`."""
        if not isinstance(other, Sums):
            return NotImplemented
        return (
            self._labels == other._labels
            and np.array_equal(self.count_C, other.count_C)
            and np.array_equal(self.sum_Cd, other.sum_Cd)
            and np.array_equal(self._lower_dd, other._lower_dd)
        )

    __hash__ = None  # type: ignore[assignment]  # mutable, as list

    def digest(self) -> str:
        """sha256 of what was learned: independent of the order in which labels arrived, of batching and of sharding.

        Canonical form: classes sorted by label, int64 little endian, columns of G's lower triangle. A class without
        samples (declared only, or subtracted) does not count.
        """
        learned = sorted((label, row) for row, label in enumerate(self._labels) if self._count_C[row])
        rows = [row for _, row in learned]
        head = {"dim": self.dim, "labels": [label for label, _ in learned], "counts": self._count_C[rows].tolist()}
        hasher = hashlib.sha256(json.dumps(head, sort_keys=True).encode())
        hasher.update(self._sum_Cd[rows].astype("<i8").tobytes())
        hasher.update(_sums_format.packed_lower(self._lower_dd).astype("<i8").tobytes())
        return hasher.hexdigest()

    def to_bytes(self) -> bytes:
        """Serialised: versioned, self-describing, sealed with a sha256. 3.3 MB at d = 1280 while sums are small.

        Bit-equal states whose labels arrived in the same order give equal bytes.
        """
        return _sums_format.dump(self._labels, self.count_C, self.sum_Cd, self._lower_dd)

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """The state that `to_bytes` wrote, bit for bit. Raises DataLossError for anything else."""
        labels, count_C, sum_Cd, lower_dd = _sums_format.parse(data)
        sums = cls.__new__(cls)
        sums._labels, sums._index = labels, {label: row for row, label in enumerate(labels)}
        sums._count_C, sums._sum_Cd, sums._lower_dd = count_C, sum_Cd, lower_dd
        return sums

    def _add_block(self, block_Bd: Float, class_B: npt.NDArray[np.intp]) -> None:
        # In place into one triangle: a quarter of the time of `G += X.T @ X`.
        add_gram(self._lower_dd, block_Bd)
        present_K, member_B = np.unique(class_B, return_inverse=True)
        onehot_KB = np.zeros((present_K.size, class_B.size))
        onehot_KB[member_B, np.arange(class_B.size)] = 1.0
        self._sum_Cd[present_K] += onehot_KB @ block_Bd
        self._count_C[present_K] += np.bincount(member_B)

    def _append(self, labels: Sequence[str]) -> None:
        for label in labels:
            self._index[label] = len(self._labels)
            self._labels.append(label)
        if len(self._labels) > self._count_C.size:
            # Doubling: 2,000 classes that come one by one cost one copy each, not 1,000.
            grown = max(len(self._labels), 2 * self._count_C.size) - self._count_C.size
            self._count_C = np.concatenate([self._count_C, np.zeros(grown, np.int64)])
            self._sum_Cd = np.concatenate([self._sum_Cd, np.zeros((grown, self.dim))])

    def _check_batch(self, quantised_Bd: QuantisedBd, labels: Sequence[str]) -> None:
        if quantised_Bd.dtype != np.int16:
            raise InputError(f"quantised features are {quantised_Bd.dtype}; they must be int16", field="features")
        if quantised_Bd.ndim != 2 or quantised_Bd.shape[1] != self.dim:
            raise InputError(f"features have shape {quantised_Bd.shape}; it must be [B, {self.dim}]", field="features")
        if isinstance(labels, str) or len(labels) != len(quantised_Bd):
            raise InputError(f"{len(labels)} labels for {len(quantised_Bd)} samples; each needs one", field="labels")
        for position, label in enumerate(labels):
            if not isinstance(label, str) or label not in self._index:
                _check_label(label, position)

    def _check_room(self, more_d: Float) -> None:
        largest = float((self._lower_dd.diagonal() + more_d).max())
        if largest >= EXACT_LIMIT:
            raise PreconditionError(
                f"the memory is full: a sum of squares would be {largest:.3g}, and sums are exact below 2^53; "
                "start a new model or learn with fewer bits",
                reason="MEMORY_FULL",
            )

    def _check_same_dim(self, other: Sums) -> None:
        if other.dim != self.dim:
            raise InvalidError(f"sums of {other.dim} features; here there are {self.dim}", field="dim")


def _read_only(view: Array) -> Array:
    view.flags.writeable = False
    return view


def _check_label(label: object, position: int) -> None:
    field = f"labels[{position}]"
    if not isinstance(label, str):
        raise InputError(f"label is a {type(label).__name__}; it must be a string", field=field)
    try:
        size = len(label.encode())
    except UnicodeEncodeError:
        raise InputError("label is not valid Unicode (lone surrogate)", field=field) from None
    if not 0 < size <= MAX_LABEL_BYTES:
        raise InputError(f"label has {size} bytes of UTF-8; it must have 1 to {MAX_LABEL_BYTES}", field=field)


def _check_remainder(count_C: npt.NDArray[np.int64], sum_Cd: Float, diagonal_d: Float) -> None:
    """Necessary conditions on sums of samples: what is left must be able to exist."""
    if (count_C < 0).any():
        raise InvalidError("cannot subtract: a class would have fewer than no samples", field="counts")
    if sum_Cd[count_C == 0].any():
        raise InvalidError("cannot subtract: a class without samples would have a sum", field="sums")
    # Scatter within classes, G_jj - sum_c S_cj^2 / n_c, cannot be negative; the slack is float64's rounding.
    between_d = np.einsum("cd,cd,c->d", sum_Cd, sum_Cd, 1.0 / np.maximum(count_C, 1))
    if (diagonal_d < between_d * (1 - 1e-9)).any() or (not count_C.any() and diagonal_d.any()):
        raise InvalidError("cannot subtract: the remaining sums belong to no set of samples", field="gram")
