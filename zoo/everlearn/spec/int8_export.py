"""Exports in 8 bits: what has to be known of the stream for them, and how good they must be."""

from __future__ import annotations

from typing import Final

from pydantic import Field

from everlearn.spec.strict import Strict

OBSERVED: Final = 64
"""Images that the first graph in 8 bits is made from; another is made each time that number has doubled."""
SHARE: Final = 32
"""Of later images, one in so many is looked at."""


class Int8Export(Strict):
    """Learns beside the stream how far activations reach, and whether a graph in 8 bits is good enough."""

    max_drop: float = Field(default=0.02, ge=0, le=1)
    """Accuracy that it may lose on the same labelled samples, each predicted before it was learned."""
    min_tested: int = Field(default=100, ge=1, le=100_000)
    """Labelled samples that this must have been measured on. Until then every image is looked at that there is time
    for, later one in 32."""
    window: int = Field(default=1_000, ge=1, le=100_000)
    """The newest of them count."""


def told() -> str:
    """What is kept for them, in words."""
    return (
        "ranges of the backbone's activations, counted over at least "
        f"{OBSERVED} images of all clients, none of them by itself; whoever has an int8 export has those ranges"
    )
