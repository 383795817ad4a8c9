"""The outputs of a regression: what each is called, and the grid its values lie on so that sums of them stay exact."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from everlearn.errors import InputError

TARGET_LIMIT: Final = 8191
"""Largest integer magnitude of a value: 14 bits. A value is off by at most 1/32764 of its range, and its sum of squares
stays below 2^53 for 134 million samples even if each lies at an end."""


@dataclass(frozen=True, kw_only=True)
class Output:
    """One declared output."""

    name: str
    low: float
    """Least value that a learner may send, in the user's own unit."""
    high: float
    """Greatest value that a learner may send."""

    @property
    def centre(self) -> float:
        """Where the integer 0 lies."""
        return self.low / 2 + self.high / 2

    @property
    def step(self) -> float:
        """Size of one integer step."""
        return (self.high - self.low) / (2 * TARGET_LIMIT)


def quantise_values(values_BK: npt.NDArray[np.floating], outputs: Sequence[Output]) -> npt.NDArray[np.int64]:
    """Rounds values to the grid: value = centre + integer * step. Raises InputError for a wrong shape, and for a value
    that is not finite or beyond its output's range: it is refused, not moved.

    >>> quantise_values(np.array([[20.0], [25.0]]), [Output(name="celsius", low=-40, high=40)]).ravel().tolist()
    [4096, 5119]
    """
    if values_BK.ndim != 2 or values_BK.shape[1] != len(outputs):
        raise InputError(f"values have shape {list(values_BK.shape)}; it must be [B, {len(outputs)}]", field="values")
    low_K, high_K = np.array([each.low for each in outputs]), np.array([each.high for each in outputs])
    # In float32 an end of the range may lie a rounding beyond it, and half a step is rounded away anyway.
    slack_K = 0.5 * np.array([each.step for each in outputs])
    values_BK = values_BK.astype(np.float64)
    good_BK = (values_BK >= low_K - slack_K) & (values_BK <= high_K + slack_K)  # False for NaN
    if not good_BK.all():
        row, column = (int(place) for place in np.argwhere(~good_BK)[0])
        output = outputs[column]
        raise InputError(
            f"{output.name} is {values_BK[row, column]:g}; the declared range is {output.low:g} to {output.high:g}",
            field=f"values[{row}][{column}]",
        )
    scaled_BK = (values_BK - [each.centre for each in outputs]) / [each.step for each in outputs]
    integers_BK: npt.NDArray[np.int64] = np.clip(np.rint(scaled_BK), -TARGET_LIMIT, TARGET_LIMIT).astype(np.int64)
    return integers_BK
