"""Exact integer sums for samples with several targets each: a set of labels, or the outputs of a regression.

Over all samples n, S[d] and G[d, d]; per target y its sum, its sum of squares, and X^T y: all that ridge regression of
any target on the features needs. Targets are integers (0 or 1 for a label, the grid of `outputs.py` for a value), so by
Cauchy-Schwarz no partial sum of X^T y exceeds 2^53 while neither the sums of squares of features nor those of targets
do: order, batching and sharding leave no trace, merging is `+` and erasing is `-`, bit for bit, as for `Sums`.

A label that arrives late is a new column whose earlier samples are 0: they did not have it.

Memory: 8 d^2 + 8 K d bytes. Axes: B samples in a batch, K targets, d features.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Sequence
from typing import Any, Final, Self, TypeVar

import numpy as np
import numpy.typing as npt

from everlearn import _target_format
from everlearn.errors import DataLossError, InputError, InvalidError, PreconditionError
from everlearn.labels import Labels
from everlearn.outputs import Output, quantise_values
from everlearn.sums import BLOCK_ROWS, EXACT_LIMIT, Sums
from everlearn.values import QuantisedBd, Task

Float = npt.NDArray[np.float64]
Count = npt.NDArray[np.int64]
Array = TypeVar("Array", bound=npt.NDArray[Any])

_ALL: Final = "all"
"""The one class of the shared sums."""


class TargetSums:
    """n, S[d], G[d, d]; sum y, sum y^2 and X^T y of each target, as exact integers, targets in order of arrival.

    >>> sums = TargetSums(2)
    >>> sums.add_sets(np.array([[1, 2], [3, 4]], np.int16), [["red", "round"], ["round"]])
    >>> sums.labels, sums.sum_K.tolist(), sums.samples, sums.cross_Kd.tolist()
    (['red', 'round'], [1, 2], 2, [[1.0, 2.0], [4.0, 6.0]])
    """

    def __init__(self, dim: int, labels: Sequence[str] = (), *, outputs: Sequence[Output] = ()) -> None:
        """`outputs`: of a regression, fixed for good. Without them targets are labels, and new ones may arrive."""
        if labels and outputs:
            raise InvalidError("a regression has outputs and no labels; leave the labels out", field="labels")
        self._shared = Sums(dim, [_ALL])
        self._outputs = tuple(outputs)
        self._names = Labels([*labels, *(output.name for output in outputs)])
        self._sum_K: Count = np.zeros(0, np.int64)
        self._square_K: Count = np.zeros(0, np.int64)
        self._cross_Kd: Float = np.zeros((0, dim))
        self._make_room()

    @property
    def task(self) -> Task:
        """`multilabel`, or `regression`."""
        return "regression" if self._outputs else "multilabel"

    @property
    def dim(self) -> int:
        """d."""
        return self._shared.dim

    @property
    def labels(self) -> list[str]:
        """Names of the targets, in order of arrival; append-only."""
        return list(self._names)

    @property
    def outputs(self) -> tuple[Output, ...]:
        """Of a regression; empty where targets are labels."""
        return self._outputs

    @property
    def samples(self) -> int:
        """n."""
        return self._shared.samples

    @property
    def shared(self) -> Sums:
        """n, S and G over all samples, as of one class; live, not to be changed by the caller."""
        return self._shared

    @property
    def total_d(self) -> Float:
        """Feature sum over all samples: a live, read-only view."""
        return _read_only(self._shared.sum_Cd[0])

    @property
    def gram_lower_dd(self) -> Float:
        """Lower triangle of G, as `Sums.gram_lower_dd`."""
        return self._shared.gram_lower_dd

    @property
    def sum_K(self) -> Count:  # noqa: N802  # axes
        """Sum of each target; of a label, the samples that have it: a live, read-only view."""
        return _read_only(self._sum_K[: len(self._names)])

    @property
    def square_K(self) -> Count:  # noqa: N802  # axes
        """Sum of each target's squares: a live, read-only view."""
        return _read_only(self._square_K[: len(self._names)])

    @property
    def cross_Kd(self) -> Float:  # noqa: N802  # axes
        """Sum over samples of target times features: a live, read-only view."""
        return _read_only(self._cross_Kd[: len(self._names)])

    @property
    def count_K(self) -> Count:  # noqa: N802  # axes
        """Samples that tell of each target: those that have the label, or all of a regression."""
        return np.full(len(self._names), self.samples, np.int64) if self._outputs else self._sum_K[: len(self._names)]

    def declare(self, labels: Sequence[str]) -> None:
        """Makes labels that no sample has yet, in this order.

        Raises InputError for a label that is repeated, known or malformed, InvalidError where targets are outputs.
        """
        if labels and self._outputs:
            raise InvalidError("a regression has outputs and no labels; leave the labels out", field="labels")
        self._names.declare(labels)
        self._make_room()

    def add_sets(self, quantised_Bd: QuantisedBd, sets: Sequence[Collection[str]]) -> None:
        """Adds a batch of samples that each have a set of labels, which may be empty; B may be 0.

        A new label becomes the next column. Raises InputError, by field, for a wrong shape or dtype, a label that is
        malformed or twice in its set; PreconditionError (reason MEMORY_FULL). Nothing is added then.
        """
        if self._outputs:
            raise InputError("a regression learns values, not labels; send one value for each output", field="values")
        self._names.check_batch(quantised_Bd, [_ALL] * len(sets), self.dim)
        for row, labels in enumerate(sets):
            self._check_set(labels, row)
        # Both are known before anything changes: what follows cannot fail.
        self._check_room(np.array([0]), quantised_Bd, len(sets))
        every = [label for labels in sets for label in labels]
        column_E = self._names.take(every)
        self._make_room()
        row_E = np.repeat(np.arange(len(sets)), [len(labels) for labels in sets])
        present_K, member_E = np.unique(column_E, return_inverse=True)
        target_BK = np.zeros((len(sets), present_K.size), np.int64)
        target_BK[row_E, member_E] = 1
        self._add(quantised_Bd, target_BK, present_K)

    def add_values(self, quantised_Bd: QuantisedBd, values_BK: npt.NDArray[np.floating]) -> None:
        """Adds a batch of samples with a value for each output, in the outputs' order and units; B may be 0.

        Raises InputError, by field, for a wrong shape or dtype and a value beyond its range; PreconditionError (reason
        MEMORY_FULL). Nothing is added then.
        """
        if not self._outputs:
            raise InputError("these samples have labels, not values; send a list of labels for each", field="labels")
        target_BK = quantise_values(values_BK, self._outputs)
        self._names.check_batch(quantised_Bd, [_ALL] * len(target_BK), self.dim)
        self._check_room((target_BK**2).sum(axis=0), quantised_Bd, len(target_BK))
        self._add(quantised_Bd, target_BK, np.arange(len(self._outputs)))

    def merge(self, other: TargetSums) -> None:
        """Adds another memory's sums: as if its samples had been added here.

        Raises InvalidError for another dimension or other outputs, PreconditionError (reason MEMORY_FULL). Nothing is
        added then.
        """
        self._check_alike(other)
        known = [label in self._names for label in other._names]
        if any(self.square_K[self._rows(other, known)] + other.square_K[known] >= EXACT_LIMIT):
            raise _full()
        self._shared.merge(other._shared)
        rows = self._names.take(list(other._names))
        self._make_room()
        self._sum_K[rows] += other.sum_K
        self._square_K[rows] += other.square_K
        self._cross_Kd[rows] += other.cross_Kd

    def subtract(self, other: TargetSums) -> None:
        """Takes sums away again, bit for bit: as if their samples had never been added. Labels stay.

        Raises InvalidError where `other` cannot be part of this; the state is unchanged then.
        """
        self._check_alike(other)
        known = [label in self._names for label in other._names]
        foreign = [label for label, square in zip(other._names, other.square_K, strict=True) if square]
        foreign = [label for label in foreign if label not in self._names]
        if foreign:
            raise InvalidError(f"cannot subtract: no target {foreign[0]!r} here", field="labels")
        rows = self._rows(other, known)
        sum_K, square_K, cross_Kd = self.sum_K.copy(), self.square_K.copy(), self.cross_Kd.copy()
        sum_K[rows] -= other.sum_K[known]
        square_K[rows] -= other.square_K[known]
        cross_Kd[rows] -= other.cross_Kd[known]
        _check_remainder(sum_K, square_K, cross_Kd, self._shared, other._shared)
        self._shared.subtract(other._shared)
        self._sum_K, self._square_K, self._cross_Kd = sum_K, square_K, cross_Kd

    def copy(self) -> Self:
        """An independent copy, to solve on while learning goes on."""
        twin = type(self).__new__(type(self))
        twin._shared, twin._names, twin._outputs = self._shared.copy(), self._names.copy(), self._outputs
        twin._sum_K, twin._square_K = self.sum_K.copy(), self.square_K.copy()
        twin._cross_Kd = self.cross_Kd.copy()
        return twin

    def __eq__(self, other: object) -> bool:
        """Same targets in the same order, same numbers. For equality whatever the order, compare `digest()`."""
        if not isinstance(other, TargetSums):
            return NotImplemented
        return (
            self._shared == other._shared
            and self._outputs == other._outputs
            and self._names == other._names
            and np.array_equal(self.sum_K, other.sum_K)
            and np.array_equal(self.square_K, other.square_K)
            and np.array_equal(self.cross_Kd, other.cross_Kd)
        )

    __hash__ = None  # type: ignore[assignment]  # mutable, as list

    def digest(self) -> str:
        """sha256 of what was learned: independent of the order in which labels arrived, of batching and of sharding.

        Canonical form: the digest of the shared sums, then targets sorted by name. A label that no sample has does not
        count.
        """
        learned = sorted((name, row) for row, name in enumerate(self._names) if self._outputs or self._sum_K[row])
        rows = [row for _, row in learned]
        head = {
            "shared": self._shared.digest(),
            "outputs": [[each.name, each.low, each.high] for each in sorted(self._outputs, key=lambda each: each.name)],
            "names": [name for name, _ in learned],
            "sums": self._sum_K[rows].tolist(),
            "squares": self._square_K[rows].tolist(),
        }
        hasher = hashlib.sha256(json.dumps(head, sort_keys=True).encode())
        hasher.update(self._cross_Kd[rows].astype("<i8").tobytes())
        return hasher.hexdigest()

    def to_bytes(self) -> bytes:
        """Serialised: versioned, self-describing, sealed with a sha256."""
        return _target_format.dump(
            _target_format.State(
                shared=self._shared,
                names=list(self._names),
                outputs=self._outputs,
                sum_K=self.sum_K,
                square_K=self.square_K,
                cross_Kd=self.cross_Kd,
            )
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """The state that `to_bytes` wrote, bit for bit. Raises DataLossError for anything else."""
        state = _target_format.parse(data)
        sums = cls.__new__(cls)
        try:
            sums._names = Labels(state.names)
        except InputError as error:
            raise DataLossError(f"these bytes are sealed but not a memory of targets: {error}") from error
        sums._shared, sums._outputs = state.shared, state.outputs
        sums._sum_K, sums._square_K, sums._cross_Kd = state.sum_K, state.square_K, state.cross_Kd
        return sums

    def _add(self, quantised_Bd: QuantisedBd, target_BK: Count, column_K: npt.NDArray[np.intp]) -> None:
        self._shared.add(quantised_Bd, [_ALL] * len(quantised_Bd))
        self._sum_K[column_K] += target_BK.sum(axis=0)
        self._square_K[column_K] += (target_BK**2).sum(axis=0)
        for start in range(0, len(target_BK), BLOCK_ROWS):
            block = slice(start, start + BLOCK_ROWS)
            rows_KB = np.ascontiguousarray(target_BK[block].T, np.float64)
            self._cross_Kd[column_K] += rows_KB @ quantised_Bd[block].astype(np.float64)

    def _make_room(self) -> None:
        if len(self._names) > self._sum_K.size:
            grown = max(len(self._names), 2 * self._sum_K.size) - self._sum_K.size
            self._sum_K = np.concatenate([self._sum_K, np.zeros(grown, np.int64)])
            self._square_K = np.concatenate([self._square_K, np.zeros(grown, np.int64)])
            self._cross_Kd = np.concatenate([self._cross_Kd, np.zeros((grown, self.dim))])

    def _check_set(self, labels: Collection[str], row: int) -> None:
        if isinstance(labels, str):
            raise InputError(f"is one text, {labels[:40]!r}; send a list of labels", field=f"labels[{row}]")
        try:
            self._names.check_batch(np.zeros((len(labels), 1), np.int16), list(labels), 1)
        except InputError as error:
            raise InputError(error.message, field=f"labels[{row}]{error.field.removeprefix('labels')}") from None
        if len(set(labels)) < len(labels):
            raise InputError("a label is twice in one set; send each once", field=f"labels[{row}]")

    def _check_room(self, squares_K: Count, quantised_Bd: QuantisedBd, rows: int) -> None:
        squares_d = np.einsum("bd,bd->d", quantised_Bd, quantised_Bd, dtype=np.float64)
        largest = float((self._shared.gram_lower_dd.diagonal() + squares_d).max())
        targets = int(squares_K.max(initial=0)) if self._outputs else rows
        if max(largest, int(self._square_K.max(initial=0)) + targets) >= EXACT_LIMIT:
            raise _full()

    def _check_alike(self, other: TargetSums) -> None:
        if other.dim != self.dim:
            raise InvalidError(f"sums of {other.dim} features; here there are {self.dim}", field="dim")
        if other._outputs != self._outputs:
            raise InvalidError("sums of other outputs or of labels; names and ranges must be the same", field="outputs")

    def _rows(self, other: TargetSums, known: Sequence[bool]) -> npt.NDArray[np.intp]:
        """Rows here of the other's targets that are known here."""
        names = [name for name, is_known in zip(other._names, known, strict=True) if is_known]
        return np.array([self._names.index(name) for name in names], np.intp)


def _full() -> PreconditionError:
    return PreconditionError(
        "the memory is full: a sum of squares would reach 2^53, below which sums are exact; start a new model or learn "
        "with fewer bits",
        reason="MEMORY_FULL",
    )


def _read_only(view: Array) -> Array:
    view = view.view()
    view.flags.writeable = False
    return view


def _check_remainder(sum_K: Count, square_K: Count, cross_Kd: Float, shared: Sums, taken: Sums) -> None:
    """Necessary conditions on sums of samples: what is left must be able to exist."""
    samples = shared.samples - taken.samples
    diagonal_d = shared.gram_lower_dd.diagonal() - taken.gram_lower_dd.diagonal()
    # By Cauchy-Schwarz, in floats with their rounding.
    slack = 1 + 1e-9
    possible = (
        samples >= 0
        and (square_K >= 0).all()
        and (sum_K.astype(np.float64) ** 2 <= square_K * float(max(samples, 0)) * slack).all()
        and (cross_Kd**2 <= np.outer(square_K, np.maximum(diagonal_d, 0)) * slack).all()
    )
    if not possible:
        raise InvalidError("cannot subtract: the remaining sums belong to no set of samples", field="sums")
