"""Exact integer sums of quantised features: per class count n and feature sum S, and one Gram matrix G.

Features are integers (`FeatureScale`), and float64 adds integers exactly below 2^53. So the sums do not depend on
order, batching or sharding, merging is `+` and forgetting is `-`, bit for bit, while BLAS does the work.
By Cauchy-Schwarz no entry of G, and no partial sum of one, exceeds the largest diagonal entry; since an integer's
magnitude is at most its square, no entry of S does either. One check of the diagonal therefore guards all of it.

A forgetting factor (`add(..., keep=0.99)`) gives that up: from then on the numbers are rounded floats, `is_exact` is
false, order matters, and nothing can be merged or subtracted. So do sums that were estimated (`everlearn.upgrade`).

Adding to G costs a pass over all of it, however few rows are added. So rows wait, as the integers they are, until there
are `BLOCK_ROWS` of them or somebody reads: since all is exact, which rows were added together shows nowhere.

Memory: 8 d^2 + 8 C d bytes (C rounded up by at most 2 x): 13 MB at d = 1280 with ten classes. G is symmetric and only
its lower triangle is kept up to date. One writer; readers take a `copy()`. S and G can be set down while nobody needs
them.

Axes: B samples in a batch, C classes, d features.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Sequence
from typing import Any, Final, Self, TypeVar

import numpy as np
import numpy.typing as npt

from everlearn import _sums_format
from everlearn._set_down import SetDown, fingerprint
from everlearn._sums_checks import check_alike, check_remainder
from everlearn.errors import DataLossError, InputError, InvalidError, PreconditionError
from everlearn.labels import Labels
from everlearn.linalg import add_gram
from everlearn.values import QuantisedBd

Float = npt.NDArray[np.float64]
Array = TypeVar("Array", bound=npt.NDArray[Any])

EXACT_LIMIT: Final = 2.0**53
"""Below this float64 holds every integer."""
FORGOTTEN: Final = 2.0**-20
"""Samples: a class whose count has decayed below this is without samples again."""
BLOCK_ROWS: Final = 256
"""Rows per BLAS call: bounds the float64 copy of a large batch (2.6 MB at d = 1280), and the rows that wait."""
_LARGEST_SQUARE: Final = 2.0**30
"""Of an int16."""

Count = npt.NDArray[np.int64] | Float
"""Integers while the sums are exact, floats once they have decayed."""


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
        self._labels = Labels()
        self._count_C: Count = np.zeros(0, np.int64)
        # G is column-major, as BLAS updates it in place.
        self._keep(np.zeros((0, dim)), np.zeros((dim, dim), order="F"))
        self._wait_for_none()
        self.declare(labels)

    @classmethod
    def estimated(cls, labels: Sequence[str], count_C: Float, sum_Cd: Float, lower_dd: Float) -> Self:
        """Sums that were worked out, not added up, for labels in this order; inexact from the start.

        `lower_dd`: lower triangle of G. Raises InvalidError where sizes disagree or a number is not finite.
        """
        made = cls(len(lower_dd), labels)
        if count_C.shape != (len(labels),) or sum_Cd.shape != (len(labels), made.dim):
            raise InvalidError(
                f"counts {count_C.shape}, sums {sum_Cd.shape} and G {lower_dd.shape} do not fit together"
            )
        if not all(np.isfinite(part).all() for part in (count_C, sum_Cd, lower_dd)):
            raise InvalidError("estimated sums must be finite")
        made._count_C = np.array(count_C, np.float64)
        made._keep(np.array(sum_Cd, np.float64), np.array(np.tril(lower_dd), np.float64, order="F"))
        return made

    @property
    def dim(self) -> int:
        """d."""
        return self._dim

    @property
    def labels(self) -> list[str]:
        """In order of arrival; append-only."""
        return list(self._labels)

    def index_of(self, labels: Sequence[str]) -> npt.NDArray[np.intp]:
        """Place of each known label."""
        return np.fromiter(map(self._labels.index, labels), np.intp, len(labels))

    @property
    def samples(self) -> int:
        """Samples learned, of all classes; rounded down where they have decayed."""
        return int(self.count_C.sum())

    @property
    def is_exact(self) -> bool:
        """Whether these are integers, as if every sample had been added just now; false once anything has decayed, and
        for what was estimated."""
        return self._count_C.dtype == np.int64

    @property
    def count_C(self) -> Count:  # noqa: N802  # axes
        """Samples per class, or what decay has left of them: a live, read-only view."""
        return _read_only(self._count_C[: len(self._labels)])

    @property
    def sum_Cd(self) -> Float:  # noqa: N802  # axes
        """Feature sum per class as it is now: a read-only view."""
        self._settle()
        return _read_only(self._sum_Cd[: len(self._labels)])

    @property
    def gram_lower_dd(self) -> Float:
        """Lower triangle of G as it is now, column-major, zero above the diagonal: a read-only view, as LAPACK wants
        it."""
        self._settle()
        return _read_only(self._lower_dd.view())

    @property
    def gram_dd(self) -> Float:
        """G, both triangles: a copy (some milliseconds; solvers use `gram_lower_dd`)."""
        self._settle()
        return self._lower_dd + np.tril(self._lower_dd, -1).T

    def declare(self, labels: Sequence[str]) -> None:
        """Makes classes that have no samples yet, in this order.

        Raises InputError for a label that is repeated, known or malformed; then none is added.
        """
        self._labels.declare(labels)
        self._make_room()

    def add(self, quantised_Bd: QuantisedBd, labels: Sequence[str], *, keep: float = 1.0) -> None:
        """Adds a batch; B may be 0. A new label becomes the next class.

        `keep`: what is left of all before it, (n, S, G) <- keep (n, S, G), for concept drift; an empty batch makes
        nothing older. Below 1 the sums are inexact from then on, and never full.

        Raises InputError for a wrong shape, dtype, number of labels or label, InvalidError for another `keep`, and
        PreconditionError (reason MEMORY_FULL) where sums would stop being exact. Nothing is added then.
        """
        self._labels.check_batch(quantised_Bd, labels, self.dim)
        if not 0 < keep <= 1:
            raise InvalidError(f"keep is {keep}; it must be above 0 and at most 1", field="keep")
        if not len(labels):
            return
        is_exact = keep == 1 and self.is_exact
        if is_exact:
            self._take_room(quantised_Bd)
        class_B = self._labels.take(labels)
        self._make_room()
        if is_exact and len(class_B) < BLOCK_ROWS:
            self._wait(quantised_Bd, class_B)
            return
        self._settle()
        if keep < 1:
            self._decay(keep)
        for start in range(0, len(labels), BLOCK_ROWS):
            block = slice(start, start + BLOCK_ROWS)
            self._add_block(quantised_Bd[block], class_B[block], keep if not start else 1.0)
        self._count_C += np.bincount(class_B, minlength=self._count_C.size)

    @property
    def held_bytes(self) -> int:
        """Of S and G; none while they are set down."""
        return self._large.held_bytes

    def set_down(self, recall: Callable[[], Sums]) -> int:
        """Lets go of S and G until somebody needs them, and gives the bytes that this frees. `recall` gives these very
        sums from where they are stored: whoever needs them calls it and waits, meets what it raises, and DataLossError
        where it gives others.
        """
        self._settle()
        if not self.held_bytes:
            return 0
        known = len(self._labels)
        was = fingerprint(self._sum_Cd[:known])
        return self._large.set_down(lambda: self._recalled(recall(), known, was))

    def merge(self, other: Sums) -> None:
        """Adds another memory's sums: as if its samples had been added here.

        Raises InvalidError for another dimension, PreconditionError (reasons MEMORY_FULL; INEXACT_SUMS where either has
        decayed: a sum's age is not in it). Nothing is added then.
        """
        self._check_alike(other, "merge")
        self._settle()
        self._check_room(other.gram_lower_dd.diagonal())
        rows = self._labels.take(list(other._labels))
        self._make_room()
        self._count_C[rows] += other.count_C
        self._sum_Cd[rows] += other.sum_Cd
        np.add(self._lower_dd, other._lower_dd, out=self._lower_dd)
        self._room_rows = 0

    def subtract(self, other: Sums) -> None:
        """Takes sums away again, bit for bit: as if their samples had never been added. Labels stay.

        Raises InvalidError where `other` cannot be part of this (unknown class, more samples than there are, or a
        remainder that no samples have), PreconditionError (reason INEXACT_SUMS) where either has decayed; the state is
        unchanged then.
        """
        self._check_alike(other, "subtract")
        missing = [
            label
            for label, count in zip(other._labels, other.count_C, strict=True)
            if count and label not in self._labels
        ]
        if missing:
            raise InvalidError(f"cannot subtract: no class {missing[0]!r} here", field="labels")
        known = [position for position, label in enumerate(other._labels) if label in self._labels]
        rows = [self._labels.index(other._labels[position]) for position in known]
        count_C, sum_Cd = self.count_C.copy(), self.sum_Cd.copy()
        count_C[rows] -= other.count_C[known]
        sum_Cd[rows] -= other.sum_Cd[known]
        check_remainder(count_C, sum_Cd, self._lower_dd.diagonal() - other.gram_lower_dd.diagonal())
        np.subtract(self._lower_dd, other._lower_dd, out=self._lower_dd)
        self._count_C = count_C
        self._keep(sum_Cd, self._lower_dd)

    def copy(self) -> Self:
        """An independent copy, to solve on while learning goes on (1 ms at d = 1280)."""
        self._settle()
        twin = type(self).__new__(type(self))
        twin._wait_for_none()
        twin._labels = self._labels.copy()
        twin._count_C = self.count_C.copy()
        twin._keep(self.sum_Cd.copy(), self._lower_dd.copy(order="F"))
        return twin

    def __eq__(self, other: object) -> bool:
        """Same labels in the same order, same numbers. For equality whatever the order, compare `digest()`."""
        if not isinstance(other, Sums):
            return NotImplemented
        return (
            self.is_exact == other.is_exact
            and self._labels == other._labels
            and np.array_equal(self.count_C, other.count_C)
            and np.array_equal(self.sum_Cd, other.sum_Cd)
            and np.array_equal(self.gram_lower_dd, other.gram_lower_dd)
        )

    __hash__ = None  # type: ignore[assignment]  # mutable, as list

    def digest(self) -> str:
        """sha256 of what was learned: independent of the order in which labels arrived, of batching and of sharding.

        Canonical form: classes sorted by label, int64 little endian, columns of G's lower triangle. A class without
        samples (declared only, or subtracted) does not count. Sums that have decayed are hashed as the floats they are,
        and the order in which samples came shows in them.
        """
        self._settle()
        learned = sorted((label, row) for row, label in enumerate(self._labels) if self._count_C[row])
        rows = [row for _, row in learned]
        head = {"dim": self.dim, "labels": [label for label, _ in learned], "counts": self._count_C[rows].tolist()}
        if not self.is_exact:
            head["exact"] = False
        number = "<i8" if self.is_exact else "<f8"
        hasher = hashlib.sha256(json.dumps(head, sort_keys=True).encode())
        hasher.update(self._sum_Cd[rows].astype(number).tobytes())
        hasher.update(_sums_format.packed_lower(self._lower_dd).astype(number).tobytes())
        return hasher.hexdigest()

    def to_bytes(self) -> bytes:
        """Serialised: versioned, self-describing, sealed with a sha256. 3.3 MB at d = 1280 while sums are small, 6.6 MB
        once they have decayed.

        Bit-equal states whose labels arrived in the same order give equal bytes.
        """
        return _sums_format.dump(list(self._labels), self.count_C, self.sum_Cd, self.gram_lower_dd)

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """The state that `to_bytes` wrote, bit for bit. Raises DataLossError for anything else."""
        labels, count_C, sum_Cd, lower_dd = _sums_format.parse(data)
        sums = cls.__new__(cls)
        sums._wait_for_none()
        try:
            sums._labels = Labels(labels)
        except InputError as error:
            raise DataLossError(f"these bytes are sealed but not a memory: {error}") from error
        sums._count_C = count_C
        sums._keep(sum_Cd, lower_dd)
        return sums

    @property
    def _sum_Cd(self) -> Float:  # noqa: N802  # axes
        return self._large.arrays[0]

    @property
    def _lower_dd(self) -> Float:
        return self._large.arrays[1]

    def _keep(self, sum_Cd: Float, lower_dd: Float) -> None:
        self._dim = len(lower_dd)
        self._large = SetDown(sum_Cd, lower_dd)

    def _recalled(self, stored: Sums, known: int, was: bytes) -> tuple[Float, Float]:
        if stored.labels != self.labels[:known] or fingerprint(stored._sum_Cd) != was:
            raise DataLossError("the stored memory is not the one that was set down; restart from the last commit")
        sum_Cd = np.zeros((self._count_C.size, self.dim))  # classes that were declared since have no samples
        sum_Cd[:known] = stored._sum_Cd
        return sum_Cd, stored._lower_dd

    def _wait_for_none(self) -> None:
        self._waiting: list[tuple[QuantisedBd, npt.NDArray[np.intp]]] = []
        """Rows that are in the counts and not in S and G yet, with their classes."""
        self._waiting_rows = 0
        self._settling = threading.Lock()
        self._room_rows = 0
        """Rows for which there is room whatever is in them."""

    def _wait(self, quantised_Bd: QuantisedBd, class_B: npt.NDArray[np.intp]) -> None:
        self._count_C += np.bincount(class_B, minlength=self._count_C.size)
        with self._settling:
            self._waiting.append((quantised_Bd.copy(), class_B))
            self._waiting_rows += len(class_B)
        if self._waiting_rows >= BLOCK_ROWS:
            self._settle()

    def _settle(self) -> None:
        """Adds the rows that wait. Under a lock, because whoever reads calls it, on whatever thread."""
        with self._settling:
            if not self._waiting:
                return
            rows_Bd = np.concatenate([quantised_Bd for quantised_Bd, _ in self._waiting])
            class_B = np.concatenate([class_B for _, class_B in self._waiting])
            self._add_block(rows_Bd, class_B)
            self._waiting, self._waiting_rows = [], 0

    def _add_block(self, block_Bd: QuantisedBd, class_B: npt.NDArray[np.intp], keep: float = 1.0) -> None:
        """Adds rows to S and G; whoever calls counts them."""
        wide_Bd = block_Bd.astype(np.float64, order="C")
        # In place into one triangle: half the work of `G += X.T @ X`, and no copy.
        add_gram(self._lower_dd, wide_Bd, keep=keep)
        present_K, member_B = np.unique(class_B, return_inverse=True)
        onehot_KB = np.zeros((present_K.size, class_B.size))
        onehot_KB[member_B, np.arange(class_B.size)] = 1.0
        self._sum_Cd[present_K] += onehot_KB @ wide_Bd

    def _decay(self, keep: float) -> None:
        """All but the Gram matrix, which decays on its way through BLAS."""
        self._count_C = np.multiply(self._count_C, keep, dtype=np.float64)  # floats from now on
        np.multiply(self._sum_Cd, keep, out=self._sum_Cd)
        gone = (self._count_C > 0) & (self._count_C < FORGOTTEN)
        self._count_C[gone], self._sum_Cd[gone] = 0.0, 0.0

    def _make_room(self) -> None:
        if len(self._labels) > self._count_C.size:
            # Doubling: 2,000 classes that come one by one cost one copy each, not 1,000.
            grown = max(len(self._labels), 2 * self._count_C.size) - self._count_C.size
            self._keep(np.concatenate([self._sum_Cd, np.zeros((grown, self.dim))]), self._lower_dd)
            self._count_C = np.concatenate([self._count_C, np.zeros(grown, self._count_C.dtype)])

    def _take_room(self, quantised_Bd: QuantisedBd) -> None:
        """For rows that are about to be added. Raises PreconditionError (reason MEMORY_FULL)."""
        if self._room_rows < len(quantised_Bd):
            self._settle()
            squares_d = np.einsum("bd,bd->d", quantised_Bd, quantised_Bd, dtype=np.float64)
            largest = self._check_room(squares_d)
            self._room_rows = int((EXACT_LIMIT - 1 - largest) // _LARGEST_SQUARE)
        else:
            self._room_rows -= len(quantised_Bd)

    def _check_room(self, more_d: Float) -> float:
        """The largest sum of squares, with these."""
        largest = float((self._lower_dd.diagonal() + more_d).max())
        if largest >= EXACT_LIMIT:
            raise PreconditionError(
                f"the memory is full: a sum of squares would be {largest:.3g}, and sums are exact below 2^53; "
                "start a new model or learn with fewer bits",
                reason="MEMORY_FULL",
            )
        return largest

    def _check_alike(self, other: Sums, verb: str) -> None:
        check_alike((self.dim, self.is_exact), (other.dim, other.is_exact), verb)


def _read_only(view: Array) -> Array:
    view.flags.writeable = False
    return view
