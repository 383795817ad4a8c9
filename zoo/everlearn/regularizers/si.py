"""Synaptic intelligence: weights that have made the loss fall stay where they are.

    omega_i = sum over steps of -g_i * step_i,   penalty = strength * sum_i O_i (weight_i - anchor_i)^2
    O <- decay * O + max(omega, 0) / ((weight - anchor)^2 + xi),   then omega = 0 and anchor = weight

(Zenke 2017, eq. 3 to 5, xi 1e-3; the paper sums O without decay.) It costs a copy of the weights, a product a step and
no pass of its own. g is what the optimizer saw: with clipping the clipped gradient, with other penalties theirs too. A
negative omega (the loss rose along the way) counts as none, so that the penalty never rewards moving.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import torch

from everlearn.regularizers._anchored import Anchored
from everlearn.regularizers._weights import fits, grouped, named, padded, trained
from everlearn.regularizers.base import State
from everlearn.spec.recipe import Regularizer as Declared
from everlearn.values import Task

XI: Final = 1e-3
"""Keeps a weight that hardly moved from mattering without bound."""
_OMEGA, _START = "omega", "start"


class Si(Anchored):
    """SI over the path of the optimizer."""

    def __init__(self, declared: Declared, task: Task = "classification") -> None:
        super().__init__(declared, task)
        self.omega: dict[str, torch.Tensor] = {}
        """How far each weight has brought the loss down since the last consolidation."""
        self.start: dict[str, torch.Tensor] = {}
        """Where each weight began then; of rows that came since, where they came."""
        self._before: dict[str, torch.Tensor] = {}

    def observe(self, model: torch.nn.Module, inputs_Bd: torch.Tensor, logits_BC: torch.Tensor) -> None:
        """Notes where the weights are."""
        with torch.no_grad():
            self._before = {name: weight.detach().clone() for name, weight in trained(model)}
            for name, before in self._before.items():
                start = self.start.get(name)
                if start is None:
                    # A copy of the reference: `_before` is replaced, never written.
                    self.start[name] = before
                elif start.shape != before.shape:
                    fits(start, before, name)
                    self.start[name] = torch.cat((start.to(before.device), before[len(start) :]))

    def moved(self, model: torch.nn.Module) -> None:
        """Adds the step: what it brought, to first order."""
        with torch.no_grad():
            for name, weight in trained(model):
                if weight.grad is None or name not in self._before:
                    continue
                brought = -weight.grad.float() * (weight - self._before[name]).float()
                omega = self.omega.get(name)
                self.omega[name] = brought if omega is None else padded(omega, weight, name).add_(brought)
            self._before = {}

    def learned(self, model: torch.nn.Module) -> dict[str, torch.Tensor]:
        """Gain per squared way."""
        importance = {}
        weights = dict(trained(model))
        for name, omega in self.omega.items():
            if name in weights:
                weight = weights[name].detach()
                way = weight - padded(self.start[name], weight, name)
                importance[name] = padded(omega, weight, name).clamp(min=0) / (way.square() + XI)
        self.omega = {}
        self.start = {name: weight.detach().clone() for name, weight in weights.items()}
        return importance

    def unfinished(self) -> State:
        """The path so far."""
        return {**named(_OMEGA, self.omega), **named(_START, self.start)}

    def take_up(self, state: Mapping[str, torch.Tensor]) -> None:
        """Takes up what `unfinished` gave."""
        taken = grouped(state, _OMEGA, _START)
        self.omega, self.start, self._before = taken[_OMEGA], taken[_START], {}
