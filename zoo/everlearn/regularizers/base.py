"""What a regulariser is: a penalty on what would be forgotten, added to the loss of a gradient step.

The learner calls, for each step: `penalty` before the backward pass, `observe` after it and before the optimizer moves
the weights, `moved` after that; and `consolidate` every so many steps, when what was learned since counts as old.
It calls `consolidate` once before the first step too, where the weights one starts from are worth keeping.
Penalties are summed, so that the order of regularisers cannot matter.

Axes: B samples in a step, C classes (labels, outputs), d features.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import NamedTuple, Protocol, runtime_checkable

import torch

from everlearn.spec.recipe import Regularizer as Declared
from everlearn.values import Task

State = dict[str, torch.Tensor]


class LinearScores(NamedTuple):
    """logits = input W^T + b, spelled out."""

    logits_BC: torch.Tensor
    """As the model's forward pass gives them."""
    input_Bd: torch.Tensor
    """Scaled as it enters the product."""
    weight_Cd: torch.nn.Parameter
    bias_C: torch.nn.Parameter | None


@runtime_checkable
class SpelledOut(Protocol):
    """A model whose scores are linear in something that is no `nn.Linear`'s input: it may say so, and `ewc` and `mas`
    are then exact for its head."""

    def linear_scores(self, inputs_Bd: torch.Tensor) -> LinearScores | None:
        """A forward pass with its graph; None where scores are not linear in the head's weights."""


class Regularizer(ABC):
    """One penalty. `model` is the trained part, tail and head, from features to logits; its parameters have stable
    names, and the head's grow along their first axis when classes arrive: what is kept of them is padded with zeros.

    Everything raises PreconditionError where what is kept does not fit the model: another shape, or fewer rows.
    """

    def __init__(self, declared: Declared, task: Task = "classification") -> None:
        """`declared` is complete: no option of its kind is None. `task`: what the scores are of."""
        self.declared = declared
        self.task = task

    @abstractmethod
    def penalty(self, model: torch.nn.Module, inputs_Bd: torch.Tensor, logits_BC: torch.Tensor) -> torch.Tensor:
        """A float32 scalar with its gradient, strength included; no host-device synchronisation. Zero, without a
        gradient, where nothing was consolidated."""

    def observe(self, model: torch.nn.Module, inputs_Bd: torch.Tensor, logits_BC: torch.Tensor) -> None:  # noqa: B027
        """Gradients of the loss are in `grad`, weights have not moved."""

    def moved(self, model: torch.nn.Module) -> None:  # noqa: B027  # most need nothing
        """The optimizer has moved the weights; gradients are still there."""

    @abstractmethod
    def consolidate(self, model: torch.nn.Module) -> None:
        """What was learned until now counts as old."""

    @abstractmethod
    def state(self) -> State:
        """Everything, as named tensors; `restore` of it is bit-identical."""

    @abstractmethod
    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Takes up what `state` gave. Raises InputError for tensors that this kind does not keep."""

    @property
    def strength(self) -> float:
        """Weight in the loss."""
        assert self.declared.strength is not None
        return self.declared.strength
