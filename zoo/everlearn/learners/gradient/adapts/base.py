"""What a choice of `adapt` is: it opens the part of a tail that learns, and closes the rest."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch

from everlearn.spec.recipe import Adapt as Declared


class Adapt(ABC):
    """One way to adapt a backbone. One file in this folder each; found by its name. Its docstring names the paper.

    The cut itself, below the last `blocks` blocks or below everything, has been made when the trunk was built: what is
    below is in no tail, and cannot move.
    """

    def __init__(self, declared: Declared, *, seed: int) -> None:
        """`declared`: its options. `seed`: of what is drawn."""
        self.declared = declared
        self.seed = seed

    @abstractmethod
    def open(self, tail: torch.nn.Module) -> None:
        """Leaves `requires_grad` to what learns of a fresh tail, in place, and adds what it needs (adapters).

        What the tail computes stays as it was, and `everlearn.backbones.tail_torch.weights_of` still reads plain
        weights, additions folded in. Raises BackboneError for a tail that has nothing to open.
        """


def open_all(tail: torch.nn.Module) -> None:
    """All of the tail learns."""
    for parameter in tail.parameters():
        parameter.requires_grad_(True)
