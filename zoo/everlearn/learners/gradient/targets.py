"""What a batch's truth is to a gradient learner: a class a row, or a dense target a score.

Dense targets are replayed with their rows: a memory that keeps the scores a row had (`latents`) keeps its targets
instead, as fp16, which is exact for yes and no and within 1/2048 for values of `UNITS`. All rows are filed under one
class there, so that the choice of rows is uniform over samples.

A set of labels names all that a sample has: one that is not in it is denied, also where it came to be known later. So
a new label is 0 in the rows before it, as the sums of the closed form have it, and replayed rows keep the learner from
announcing it everywhere; unknown (NaN) would have left it to the rows that came since.

Axes: B samples in a batch, C labels or outputs, d features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from everlearn.errors import InputError
from everlearn.labels import Labels, check_label
from everlearn.outputs import Output, quantise_values
from everlearn.truth import LabelSets, Truth, Values, single_labels
from everlearn.values import NEVER, QuantisedBd, Task

UNITS: Final = 3.0
"""An output's declared range becomes -3 to 3: about unit variance where the range is six deviations wide. Huber's
`delta` is in this unit, a sixth of the range."""
ALL: Final = "0"
"""Of a memory of dense targets, the class that every row is filed under."""


@dataclass(frozen=True, kw_only=True)
class Told:
    """A batch's truth in numbers."""

    class_B: npt.NDArray[np.int64]
    """Index of each row's class; 0 where targets are dense."""
    filed_B: Sequence[str]
    """The label that the memory keeps each row under."""
    count_C: npt.NDArray[np.int64]
    """Samples that tell of each label or output."""
    target_BC: npt.NDArray[np.float32] | None = None
    """Dense targets; None where classes are meant."""


class Truths:
    """Of one task. The labels' table is the learner's."""

    def __init__(self, task: Task, outputs: Sequence[Output] = ()) -> None:
        self.task = task
        self.outputs = tuple(outputs)

    @property
    def is_dense(self) -> bool:
        """Whether a sample tells of every label or output at once."""
        return self.task != "classification"

    def filed(self, labels: Sequence[str]) -> list[str]:
        """The memory's labels where the learner's are these: the same, or numbers of columns, the first of which is
        there from the beginning."""
        return [str(column) for column in range(max(len(labels), 1))] if self.is_dense else list(labels)

    def check(self, quantised_Bd: QuantisedBd, truth: Truth, table: Labels, dim: int) -> None:
        """Raises InputError, by field, for what this task cannot learn."""
        if not self.is_dense:
            table.check_batch(quantised_Bd, single_labels(truth), dim)
            return
        table.check_batch(quantised_Bd, [ALL] * len(truth), dim)
        if isinstance(truth, Values) and self.task == "regression":
            quantise_values(truth.values_BK, self.outputs)
        elif isinstance(truth, LabelSets) and self.task == "multilabel":
            for row, labels in enumerate(truth.sets_B):
                _check_set(labels, row, table)
        else:
            raise InputError(f"this model's task is {self.task}; the batch tells something else", field="labels")

    def take(self, truth: Truth, table: Labels) -> Told:
        """What `check` let pass, in numbers. New labels become the table's next."""
        if isinstance(truth, Values):
            return self._values(truth)
        if isinstance(truth, LabelSets):
            return _sets(truth, table)
        class_B = table.take(truth).astype(np.int64)
        return Told(class_B=class_B, filed_B=truth, count_C=np.bincount(class_B, minlength=len(table)))

    def served(
        self, weight_dC: npt.NDArray[np.float32], bias_C: npt.NDArray[np.float32], count_C: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Weights and bias whose scores are in the outputs' own units; labels without a sample never win."""
        if self.task != "regression":
            bias_C[count_C == 0] = NEVER
            return weight_dC, bias_C
        unit_C = np.array([_unit(each) for each in self.outputs])
        centre_C = np.array([each.centre for each in self.outputs])
        return (weight_dC * unit_C).astype(np.float32), (bias_C * unit_C + centre_C).astype(np.float32)

    def _values(self, truth: Values) -> Told:
        rows, columns = truth.values_BK.shape
        centre_K, unit_K = (np.array([of(each) for each in self.outputs]) for of in (_centre, _unit))
        target_BK = ((truth.values_BK.astype(np.float64) - centre_K) / unit_K).astype(np.float32)
        return _dense(target_BK, np.full(columns, rows, np.int64))


def _sets(truth: LabelSets, table: Labels) -> Told:
    column_E = table.take([label for labels in truth.sets_B for label in labels])
    row_E = np.repeat(np.arange(len(truth)), [len(labels) for labels in truth.sets_B])
    target_BC = np.zeros((len(truth), len(table)), np.float32)
    target_BC[row_E, column_E] = 1
    return _dense(target_BC, target_BC.sum(axis=0).astype(np.int64))


def _dense(target_BC: npt.NDArray[np.float32], count_C: npt.NDArray[np.int64]) -> Told:
    rows = len(target_BC)
    return Told(class_B=np.zeros(rows, np.int64), filed_B=[ALL] * rows, count_C=count_C, target_BC=target_BC)


def _check_set(labels: Sequence[str], row: int, table: Labels) -> None:
    if len(set(labels)) < len(labels):
        raise InputError("a label is twice in one set; send each once", field=f"label_sets[{row}]")
    for position, label in enumerate(labels):
        if label not in table:
            check_label(label, position)


def _unit(output: Output) -> float:
    return (output.high - output.low) / (2 * UNITS)


def _centre(output: Output) -> float:
    return output.centre
