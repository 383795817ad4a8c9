"""What is known to be true of a batch of samples: one label each, a set of labels each, or values of the outputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from everlearn.errors import InputError


@dataclass(frozen=True, eq=False)
class LabelSets:
    """Of each sample the labels it has: none, one or several."""

    sets_B: tuple[tuple[str, ...], ...]

    def __len__(self) -> int:
        return len(self.sets_B)


@dataclass(frozen=True, eq=False)
class Values:
    """Of each sample a value for each output, in the outputs' order and units; float32 or float64 [B, K]."""

    values_BK: npt.NDArray[np.floating]

    def __len__(self) -> int:
        return len(self.values_BK)


Truth = Sequence[str] | LabelSets | Values
"""One label a sample, or several, or values: which of them is the task of the model."""


def part_of(truth: Truth, rows: slice) -> Truth:
    """What is true of some of the samples."""
    if isinstance(truth, LabelSets):
        return LabelSets(truth.sets_B[rows])
    if isinstance(truth, Values):
        return Values(truth.values_BK[rows])
    return truth[rows]


def single_labels(truth: Truth) -> Sequence[str]:
    """The one label of each sample. Raises InputError where samples have several, or values.

    >>> single_labels(["cat", "dog"])
    ['cat', 'dog']
    """
    if isinstance(truth, LabelSets | Values):
        raise InputError("this model learns one label a sample; send labels", field="labels")
    return truth
