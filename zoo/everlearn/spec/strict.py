"""The base of every part of a declaration."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Strict(BaseModel):
    """Base of every part: no unknown keys, no coercion (`yes` is not a string, `"3"` is not a number), frozen.

    Rules between fields are validators of the later field, so that an error names it; hence defaults are validated too.
    """

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        use_attribute_docstrings=True,
        validate_default=True,
        allow_inf_nan=False,
    )
