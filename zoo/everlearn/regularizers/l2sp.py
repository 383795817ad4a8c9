"""L2-SP: weights stay close to those one started from.

    penalty = strength / 2 * ||weight - start||^2

(Xuhong Li 2018, eq. 3; with the same strength for weights that the pretrained network does not have, which start at
zero.) The start is taken at the first consolidation, or by the first penalty where there was none, and never again:
later consolidations change nothing. Rows of a head that came since start where they came, at the next of either.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from everlearn.regularizers._weights import fits, grouped, named, trained
from everlearn.regularizers.base import Regularizer, State
from everlearn.spec.recipe import Regularizer as Declared
from everlearn.values import Task

_START = "start"


class L2sp(Regularizer):
    """Squared distance to the starting weights."""

    def __init__(self, declared: Declared, task: Task = "classification") -> None:
        super().__init__(declared, task)
        self.start: dict[str, torch.Tensor] = {}
        """Where one started, by name."""

    def penalty(self, model: torch.nn.Module, inputs_Bd: torch.Tensor, logits_BC: torch.Tensor) -> torch.Tensor:
        """As above."""
        self.consolidate(model)
        parts = [(weight - self.start[name]).square().sum() for name, weight in trained(model)]
        if not parts:
            return torch.zeros((), device=logits_BC.device)
        return 0.5 * self.strength * torch.stack(parts).sum()

    def consolidate(self, model: torch.nn.Module) -> None:
        """Takes as the start what has none yet."""
        # Frozen ones too: they begin where they are should they thaw.
        for name, weight in model.named_parameters():
            start = self.start.get(name)
            if start is None:
                self.start[name] = weight.detach().clone()
            elif start.shape != weight.shape or start.device != weight.device:
                fits(start, weight, name)
                start = start.to(weight.device)
                self.start[name] = torch.cat((start, weight.detach()[len(start) :])) if weight.ndim else start

    def state(self) -> State:
        """The start."""
        return named(_START, self.start)

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Takes up what `state` gave."""
        self.start = grouped(state, _START)[_START]
