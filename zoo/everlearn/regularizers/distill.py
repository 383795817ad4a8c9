"""Learning without forgetting: scores stay close to those of the version last consolidated, on the samples at hand.

    penalty = strength * T^2 * mean_B KL(softmax(teacher / T) || softmax(student / T)), over the classes of the teacher

(Li & Hoiem 2016, eq. 2 to 4, in Hinton 2015's form: T^2 keeps gradients alike over temperatures, and KL is the paper's
cross-entropy less a constant, so that it is zero where the two agree.) Of several labels a sample it is the sum of the
labels' own KL: binary cross-entropy, less the teacher's entropy; of values (teacher - student)^2 / 2, the KL of two
Gaussians of unit variance. Classes that came since are left out. The teacher costs a forward pass a step and a copy of
the weights. It never drops out and normalises with its own running statistics. Call `penalty` under the autocast of the
student's pass, so that both round alike.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch

from everlearn.errors import PreconditionError
from everlearn.regularizers._meaning import MEANINGS
from everlearn.regularizers._weights import fits, grouped, named
from everlearn.regularizers.base import Regularizer, State
from everlearn.spec.recipe import Regularizer as Declared
from everlearn.values import Task

_WEIGHTS, _BUFFERS = "weights", "buffers"


class Distill(Regularizer):
    """LwF, on streamed and replayed samples alike."""

    def __init__(self, declared: Declared, task: Task = "classification") -> None:
        super().__init__(declared, task)
        self.weights: dict[str, torch.Tensor] = {}
        """The teacher's, by name."""
        self.buffers: dict[str, torch.Tensor] = {}
        self._teacher: torch.nn.Module | None = None

    def penalty(self, model: torch.nn.Module, inputs_Bd: torch.Tensor, logits_BC: torch.Tensor) -> torch.Tensor:
        """As above; zero without a teacher, or without a sample."""
        assert self.declared.temperature is not None
        if not self.weights or not len(inputs_Bd):
            return torch.zeros((), device=logits_BC.device)
        if self._teacher is None:
            self._teacher = self._made_of(model)
        with torch.no_grad():
            taught_BC = self._teacher(inputs_Bd)
        known_BC = logits_BC[:, : taught_BC.shape[1]].float()
        distance = MEANINGS[self.task].divergence(taught_BC.float(), known_BC, self.declared.temperature)
        return self.strength * distance

    def consolidate(self, model: torch.nn.Module) -> None:
        """Takes the model as it is for the teacher."""
        self.weights = {name: weight.detach().clone() for name, weight in model.named_parameters()}
        self.buffers = {name: buffer.detach().clone() for name, buffer in model.named_buffers()}
        self._teacher = None

    def state(self) -> State:
        """The teacher."""
        return {**named(_WEIGHTS, self.weights), **named(_BUFFERS, self.buffers)}

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Takes up what `state` gave."""
        taken = grouped(state, _WEIGHTS, _BUFFERS)
        self.weights, self.buffers, self._teacher = taken[_WEIGHTS], taken[_BUFFERS], None

    def _made_of(self, model: torch.nn.Module) -> torch.nn.Module:
        """The model's modules around the teacher's tensors: nothing is held twice, and its head has its own rows."""
        memo: dict[int, object] = {}
        for name, weight in model.named_parameters():
            if name not in self.weights:
                raise PreconditionError(
                    f"the teacher has no {name}; a model that gained a part begins a new state",
                    reason="REGULARIZER_STATE",
                )
            fits(self.weights[name], weight, name)
            memo[id(weight)] = torch.nn.Parameter(self.weights[name].to(weight.device), requires_grad=False)
        for name, buffer in model.named_buffers():
            if name in self.buffers:
                memo[id(buffer)] = self.buffers[name].to(buffer.device)
        return copy.deepcopy(model, memo).eval()
