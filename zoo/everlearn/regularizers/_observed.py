"""Importance as a mean over samples, for `ewc` and `mas`: exact for a linear head, from one gradient a step for a tail.

For logits z = W x + b of a linear layer the gradient of a sample is an outer product, so that per-sample squares or
absolute values sum up to one matrix product, at the cost of the forward pass. It is used wherever the logits are what
an `nn.Linear` returns, or where the model spells the product out (`base.SpelledOut`). Everything below that layer
would need a gradient per sample; one gradient a batch stands for them (each kind says what that estimates), for one
more forward and backward pass a step.

Axes: B samples in a step, C classes, d inputs of the last layer.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping

import torch

from everlearn.errors import InputError
from everlearn.regularizers._anchored import Anchored
from everlearn.regularizers._weights import grouped, named, padded, trained
from everlearn.regularizers.base import LinearScores, SpelledOut, State
from everlearn.spec.recipe import Regularizer as Declared
from everlearn.values import Task

_SUM, _COUNTS = "sum", "counts"


class Observed(Anchored):
    """Base of the kinds that look at each batch once more."""

    def __init__(self, declared: Declared, task: Task = "classification") -> None:
        super().__init__(declared, task)
        self.sum: dict[str, torch.Tensor] = {}
        """Over the samples observed since the last consolidation."""
        self.rows = 0
        """Samples observed since then."""
        self.steps = 0
        """Batches ever observed: the seed of what is drawn, so that a restored state goes on alike."""

    def observe(self, model: torch.nn.Module, inputs_Bd: torch.Tensor, logits_BC: torch.Tensor) -> None:
        """Adds the batch. `grad` is neither read nor written: it holds penalties and replayed losses, too."""
        self.steps += 1
        if not len(inputs_Bd):
            return
        with torch.enable_grad():
            again_BC, linear = _forward(model, inputs_Bd)
            names = {id(weight): name for name, weight in trained(model)}
            added = {}
            if linear is not None:
                of_weight_Cd, of_bias_C = self.of_head(again_BC.detach().float(), linear.input_Bd.detach().float())
                for weight, value in ((linear.weight_Cd, of_weight_Cd), (linear.bias_C, of_bias_C)):
                    if id(weight) in names:
                        added[names.pop(id(weight))] = value
            rest = [weight for _, weight in trained(model) if id(weight) in names]
            if rest:
                gradients = torch.autograd.grad(self.of_batch(again_BC.float()), rest, allow_unused=True)
                for weight, gradient in zip(rest, gradients, strict=True):
                    if gradient is not None:
                        added[names[id(weight)]] = self.of_gradient(gradient)
        self._add(model, added)
        self.rows += len(inputs_Bd)

    @abstractmethod
    def of_head(self, logits_BC: torch.Tensor, input_Bd: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The batch's exact sum for weight [C, d] and bias [C] of the layer that gives the logits."""

    @abstractmethod
    def of_batch(self, logits_BC: torch.Tensor) -> torch.Tensor:
        """The scalar whose gradient stands for the batch in the other layers."""

    @abstractmethod
    def of_gradient(self, gradient: torch.Tensor) -> torch.Tensor:
        """That gradient as a sum over the batch, >= 0."""

    def learned(self, model: torch.nn.Module) -> dict[str, torch.Tensor]:
        """Means over the samples observed."""
        weights = dict(trained(model))
        means = {
            name: padded(total, weights[name], name) / self.rows for name, total in self.sum.items() if name in weights
        }
        self.sum, self.rows = {}, 0
        return means

    def unfinished(self) -> State:
        """Sums and counts."""
        counts = torch.tensor([self.rows, self.steps], dtype=torch.int64)
        return {**named(_SUM, self.sum), f"{_COUNTS}/rows_steps": counts}

    def take_up(self, state: Mapping[str, torch.Tensor]) -> None:
        """Takes up what `unfinished` gave."""
        taken = grouped(state, _SUM, _COUNTS)
        counts = taken[_COUNTS].get("rows_steps")
        if counts is None or counts.shape != (2,):
            raise InputError("a state without counts/rows_steps of two numbers; take what `state` gave", field="state")
        self.rows, self.steps = (int(count) for count in counts.tolist())
        self.sum = taken[_SUM]

    def _add(self, model: torch.nn.Module, added: dict[str, torch.Tensor]) -> None:
        with torch.no_grad():
            for name, weight in trained(model):
                if name in added:
                    before = self.sum.get(name)
                    self.sum[name] = added[name] if before is None else padded(before, weight, name).add_(added[name])


def _forward(model: torch.nn.Module, inputs_Bd: torch.Tensor) -> tuple[torch.Tensor, LinearScores | None]:
    """Logits with a graph of their own, and the linear layer that gave them, if one did."""
    calls: list[tuple[torch.nn.Linear, torch.Tensor, torch.Tensor]] = []

    def note(layer: torch.nn.Linear, given: tuple[torch.Tensor, ...], result: torch.Tensor) -> None:
        calls.append((layer, given[0], result))

    if isinstance(model, SpelledOut) and (spelled := model.linear_scores(inputs_Bd.detach())) is not None:
        return spelled.logits_BC, spelled
    # Not a subclass: an adapter's output is more than W x + b.
    layers = [layer for layer in model.modules() if type(layer) is torch.nn.Linear]
    hooks = [layer.register_forward_hook(note) for layer in layers]
    try:
        # Copies, because a second pass must not count twice in the running statistics of a batch norm.
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        logits_BC = torch.func.functional_call(model, buffers, (inputs_Bd.detach(),))
    finally:
        for hook in hooks:
            hook.remove()
    for layer, given_Bd, result in calls:
        if result is logits_BC and given_Bd.ndim == 2:
            return logits_BC, LinearScores(logits_BC, given_Bd, layer.weight, layer.bias)
    return logits_BC, None
