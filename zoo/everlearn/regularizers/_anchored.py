"""A quadratic penalty around the weights of the last consolidation, each weighed by how much it matters.

    penalty = strength * factor * sum_i importance_i (weight_i - anchor_i)^2

Shared by `ewc`, `si` and `mas`, which differ in what importance is. Importance lives on across consolidations and
fades: importance <- decay * importance + what was learned since (online EWC, Schwarz 2018, eq. 9). Rows of a head that
came since the last consolidation have no importance yet, and are free.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import torch

from everlearn.regularizers._weights import fits, grouped, known_rows, named, padded, trained
from everlearn.regularizers.base import Regularizer, State
from everlearn.spec.recipe import Regularizer as Declared
from everlearn.values import Task

_ANCHOR, _IMPORTANCE = "anchor", "importance"


class Anchored(Regularizer):
    """Base of the quadratic penalties."""

    factor: ClassVar[float] = 1.0
    """Of the paper's equation."""

    def __init__(self, declared: Declared, task: Task = "classification") -> None:
        super().__init__(declared, task)
        self.anchor: dict[str, torch.Tensor] = {}
        """Weights at the last consolidation, by name."""
        self.importance: dict[str, torch.Tensor] = {}
        """How much each matters, >= 0; a weight without any is free."""

    def penalty(self, model: torch.nn.Module, inputs_Bd: torch.Tensor, logits_BC: torch.Tensor) -> torch.Tensor:
        """As above; zero where nothing is important yet."""
        parts = []
        for name, weight in trained(model):
            if name in self.importance:
                fits(self.anchor[name], weight, name)
                self.anchor[name] = self.anchor[name].to(weight.device)
                importance = self.importance[name] = self.importance[name].to(weight.device)
                moved = known_rows(weight, importance) - self.anchor[name]
                parts.append((importance * moved.square()).sum())
        if not parts:
            return torch.zeros((), device=logits_BC.device)
        return self.strength * self.factor * torch.stack(parts).sum()

    def consolidate(self, model: torch.nn.Module) -> None:
        """Takes the weights as the anchor, and what was learned since the last time into their importance. Where
        nothing was learned since, importance stays what it is."""
        with torch.no_grad():
            assert self.declared.decay is not None
            learned = self.learned(model)
            for name, weight in trained(model):
                new = learned.get(name)
                old = self.importance.get(name)
                if old is not None:
                    old = padded(old, weight, name)
                    self.importance[name] = old if new is None else self.declared.decay * old + new
                elif new is not None:
                    self.importance[name] = new
                self.anchor[name] = weight.detach().clone()

    @abstractmethod
    def learned(self, model: torch.nn.Module) -> dict[str, torch.Tensor]:
        """Importance of what was observed since the last consolidation, in the weights' shapes, and begins anew;
        nothing where nothing was observed. `anchor` is still that of the last consolidation."""

    def state(self) -> State:
        """Anchor, importance and what a kind adds."""
        return {**named(_ANCHOR, self.anchor), **named(_IMPORTANCE, self.importance), **self.unfinished()}

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Takes up what `state` gave."""
        mine = {path: tensor for path, tensor in state.items() if path.partition("/")[0] in (_ANCHOR, _IMPORTANCE)}
        self.take_up({path: tensor for path, tensor in state.items() if path not in mine})
        taken = grouped(mine, _ANCHOR, _IMPORTANCE)
        self.anchor, self.importance = taken[_ANCHOR], taken[_IMPORTANCE]

    @abstractmethod
    def unfinished(self) -> State:
        """What was observed since the last consolidation, for `state`."""

    @abstractmethod
    def take_up(self, state: Mapping[str, torch.Tensor]) -> None:
        """Takes up what `unfinished` gave. Raises InputError for other names."""
