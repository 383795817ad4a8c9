"""Samples that were predicted wait for what was true of them: the label of a late answer joins by the sample's id.

Features wait, in RAM alone. They are personal data where the samples are: an image can be guessed from its features.
"""

from __future__ import annotations

from typing import Final

from pydantic import Field

from everlearn.spec.strict import Strict

BESIDE_BYTES: Final = 400
"""Beside its quantised features, of a sample that waits: when it came, what was predicted, its place in an index."""


class LateLabels(Strict):
    """How many predicted samples wait for their labels, and how long."""

    ttl_s: int = Field(default=604_800, ge=1, le=31_622_400)
    """Seconds on the server's own clock after which features are dropped: 7 days, which most answers take less than."""
    capacity: int = Field(default=100_000, ge=1, le=10_000_000)
    """Samples that wait at most; the oldest leave first. 100,000 of EfficientNet-Lite0 are about 300 MB of RAM."""


def room_bytes(declared: LateLabels, dim: int) -> int:
    """RAM that so many samples of `dim` features take.

    >>> room_bytes(LateLabels(capacity=1000), 1280)
    2960000
    """
    return declared.capacity * (2 * dim + BESIDE_BYTES)


def told(declared: LateLabels) -> str:
    """What is kept and how long, in words."""
    return (
        f"features of up to {declared.capacity:,} predicted samples wait for their labels (late_labels), in RAM alone "
        f"and {declared.ttl_s:,} s at most; never on disk, and gone when the server ends"
    )
