"""What a regression predicts: the part of a declaration that names its outputs."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from everlearn.spec import rules
from everlearn.spec.strict import Strict

MAX_OUTPUTS = 256
"""Each is a column of every head, and a value of every sample."""
_LEAST_RANGE = 1e-3
"""Of the larger end: float32 tells 16 million numbers apart, and values are kept on a grid of 16,000 steps."""


class DeclaredOutput(Strict):
    """One output of a regression."""

    name: Annotated[str, AfterValidator(rules.label)]
    """What it is called in answers, exports and tables; 1 to 256 bytes."""
    min: float
    """Least value that a learner may send, in your own unit; values beyond are refused."""
    max: float = Field()
    """Greatest value that a learner may send. Values are rounded to 1/16382 of the range, so that sums of them are
    exact."""

    @field_validator("max")
    @classmethod
    def _a_range(cls, value: float, info: ValidationInfo) -> float:
        low = info.data.get("min")
        if low is None:
            return value
        if not low < value:
            raise ValueError(f"is {value:g}, not above min, which is {low:g}")
        largest = max(abs(low), abs(value))
        if largest > 1e30 or value - low < 1e-30:
            raise ValueError(f"{low:g} to {value:g} is beyond float32; choose another unit")
        if value - low < _LEAST_RANGE * largest:
            raise ValueError(
                f"{low:g} to {value:g} is too narrow for float32 at that distance from 0; declare the difference from "
                "an origin near the values"
            )
        return value
