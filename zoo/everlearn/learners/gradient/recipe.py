"""What a gradient learner needs of a declaration."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from everlearn.errors import SpecError
from everlearn.spec.model import Memory
from everlearn.spec.recipe import Loss, Regularizer, Training

HEADS: Final = ("cosine", "linear")
"""Heads that learn by gradient steps."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The axes of a declaration that move weights. Raises SpecError for a head that is solved."""

    head: str = "linear"
    """`linear` or `cosine`."""
    memory: Memory = field(default_factory=lambda: Memory(kind="none"))
    """What is replayed."""
    regularize: tuple[Regularizer, ...] = ()
    """Summed penalties."""
    loss: Loss = field(default_factory=Loss)
    """What a step minimises."""
    train: Training = field(default_factory=Training)
    """The craft of the steps."""

    def __post_init__(self) -> None:
        if self.head not in HEADS:
            raise SpecError(
                f"head {self.head!r} does not learn by gradient steps; these do: {', '.join(HEADS)}",
                field="spec.head.kind",
            )

    def kinds(self) -> dict[str, Any]:
        """What must be as it was for stored weights to mean the same."""
        return {"head": self.head, "memory": self.memory.kind}
