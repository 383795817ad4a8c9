"""What a gradient learner needs of a declaration."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from everlearn.errors import SpecError
from everlearn.outputs import Output
from everlearn.spec.model import Memory
from everlearn.spec.recipe import Loss, Regularizer, Training
from everlearn.values import Task

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
    task: Task = "classification"
    """What is predicted."""
    outputs: tuple[Output, ...] = ()
    """Of a regression."""
    noise: float = 0.0
    """Standard deviation of what hides a sample in a release, in units of what it can change; 0: nothing is hidden."""
    by_range: bool = False
    """Several labels and values, of a linear head: features lie in -1 to 1 and are judged as they are, not by their
    direction."""

    def __post_init__(self) -> None:
        if self.head not in HEADS:
            raise SpecError(
                f"head {self.head!r} does not learn by gradient steps; these do: {', '.join(HEADS)}",
                field="spec.head.kind",
            )

    @property
    def top(self) -> str:
        """Name of the head's form."""
        return "range" if self.by_range and self.head == "linear" else self.head

    @property
    def kept(self) -> Memory:
        """The memory's options: where targets are dense, it keeps them as the scores of its rows."""
        if self.task == "classification" or self.memory.kind != "latents":
            return self.memory
        return self.memory.model_copy(update={"logits": True})

    def kinds(self) -> dict[str, Any]:
        """What must be as it was for stored weights to mean the same."""
        kinds = {"head": self.top, "memory": self.memory.kind}
        return kinds if self.task == "classification" else {**kinds, "task": self.task}
