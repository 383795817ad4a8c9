"""What a gradient learner can go back to: its state at an earlier moment, without the features that its memory had.

Those would be a second copy of single samples' features, beyond their end and beyond their client's key. They are not
needed: rows say when they came, so that a later state of the memory has those of the moment, as far as they are kept.
"""

from __future__ import annotations

from everlearn.learners.gradient import layout
from everlearn.memories.sealing import emptied


def moment_of(data: bytes) -> bytes:
    """Of a learner's bytes, sealed or not: what `Learner.forget_client` takes as `before`: weights, optimizer, random
    state, where the schedule stands, and counts. Raises DataLossError for other bytes."""
    parts = layout.split(data)
    return layout.join(parts.header, parts.tensors, emptied(parts.memory))


def samples_of(moment: bytes) -> int:
    """Learned by then. Raises DataLossError."""
    return int(layout.split(moment).header["samples"])
