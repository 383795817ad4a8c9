"""What a caller may hand over as labels, and how they become messages.

Axes: N samples, K outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Any

import numpy as np
import numpy.typing as npt

from everlearn_client.errors import InvalidArgument
from everlearn_protos.arrays import to_tensor
from everlearn_protos.v1 import learn_pb2

Truth = Sequence[Any] | npt.NDArray[np.floating[Any]]
"""One label, a str, for each sample; a list, tuple or set of labels for each (task multilabel); or a value for each
output: floats [N, K] or [N], or a list of numbers for each (task regression). Checked by `to_targets`: a type that
tells these apart would have every reader of labels tell them apart too."""


class Targets:
    """Checked labels of a batch: how many, how large each is, and the message of a range of them."""

    def __init__(
        self,
        *,
        labels: Sequence[str] = (),
        sets: Sequence[Sequence[str]] | None = None,
        values_NK: npt.NDArray[np.float32] | None = None,
    ) -> None:
        self._labels, self._sets, self._values_NK = labels, sets, values_NK

    def __len__(self) -> int:
        if self._values_NK is not None:
            return len(self._values_NK)
        return len(self._labels if self._sets is None else self._sets)

    def size_bytes(self, row: int) -> int:
        """Bytes of sample `row` in a message, nearly."""
        if self._values_NK is not None:
            return int(4 * self._values_NK.shape[1])
        if self._sets is None:
            return len(self._labels[row].encode()) + 8
        return sum(len(label.encode()) + 8 for label in self._sets[row]) + 8

    def part(self, first: int, last: int) -> Targets:
        """Those of samples first..last-1."""
        sets = None if self._sets is None else self._sets[first:last]
        values_NK = None if self._values_NK is None else self._values_NK[first:last]
        return Targets(labels=self._labels[first:last], sets=sets, values_NK=values_NK)

    def put(self, message: learn_pb2.Batch) -> None:
        """Writes them into a batch's message."""
        if self._values_NK is not None:
            message.values.CopyFrom(to_tensor(self._values_NK))
        elif self._sets is not None:
            for labels in self._sets:
                message.label_sets.add(labels=labels)
        else:
            message.labels.extend(self._labels)


def to_targets(truth: Truth, samples: int) -> Targets:
    """Checks that each of so many samples has a label, a set of labels or values. Raises InvalidArgument."""
    count = "one str" if isinstance(truth, str) else str(len(truth))
    if isinstance(truth, str) or len(truth) != samples:
        raise InvalidArgument(f"{samples} samples and {count} as labels; one label each is needed", field="labels")
    if isinstance(truth, np.ndarray) and truth.dtype.kind == "f":
        if truth.ndim > 2:
            raise InvalidArgument(f"values have shape {list(truth.shape)}; it must be [N, K]", field="labels")
        return Targets(values_NK=np.ascontiguousarray(truth.reshape(samples, -1), np.float32))
    if len(truth) and all(_are_numbers(each) for each in truth):
        return Targets(values_NK=_matrix(truth))
    if any(isinstance(each, list | tuple | set | frozenset) for each in truth):
        return Targets(sets=[_checked_set(each, row) for row, each in enumerate(truth)])
    for row, label in enumerate(truth):
        if not isinstance(label, str):
            raise InvalidArgument(
                f"labels[{row}] is a {type(label).__name__}; labels are names: use str(label), a list of names for "
                "several, or an array of floats for values",
                field=f"labels[{row}]",
            )
    return Targets(labels=[str(label) for label in truth])


def _are_numbers(values: object) -> bool:
    return isinstance(values, list | tuple) and bool(values) and all(isinstance(each, Real) for each in values)


def _matrix(rows: Truth) -> npt.NDArray[np.float32]:
    if len({len(row) for row in rows}) > 1:
        raise InvalidArgument("samples have different numbers of values; one for each output is needed", field="labels")
    return np.array(rows, np.float32)


def _checked_set(labels: object, row: int) -> list[str]:
    if not isinstance(labels, list | tuple | set | frozenset) or not all(isinstance(each, str) for each in labels):
        raise InvalidArgument(f"labels[{row}] must be a list of names, as others here are", field=f"labels[{row}]")
    # Of a set in a stable order: the same batch is the same bytes when it is sent again.
    return sorted(labels) if isinstance(labels, set | frozenset) else list(labels)
