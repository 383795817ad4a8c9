"""A trunk in 8 bits: the model learns on the graph that devices run."""

from __future__ import annotations

from pydantic import Field

from everlearn.spec.strict import Strict


class Int8Trunk(Strict):
    """Learns, answers and ships on one graph in 8 bits, made once, of the first images' activations."""

    samples: int = Field(default=256, ge=32, le=100_000)
    """Images that the ranges of its activations are from. Until they have come nothing is durable and nothing is
    answered: clients keep them and send them again, and then they are learned like all others."""


def told(declared: Int8Trunk) -> str:
    """What is kept for it, in words."""
    return (
        f"the graph in 8 bits, with the ranges of the backbone's activations over the first {declared.samples:,} "
        "images of all clients, none of them by itself; whoever has an export has those ranges, and no client can be "
        "taken out of them"
    )
