"""DP-SGD: a step's gradient of which no row can make up more than a given length, hidden in noise (Abadi et al. 2016).

    g = (sum_i min(1, C / |g_i|) g_i + z C N(0, I)) / N      over all weights that learn, head and tail together

Per-row gradients of the tail are Opacus' (Yousefpour et al. 2021); of the head they are a product, of which the length
alone is needed (Goodfellow 2015). The noise is not Opacus', which draws from a generator of torch's: each number is the
sum of four of the system's (`everlearn.privacy.mechanism.normals`), halved, so that the rounding of floats does not
tell what it was added to (Holohan & Braghin 2021). No generator has a state that a checkpoint could keep: who holds one
cannot draw the noise of its past again, and a step that is made again after a crash is made with other noise.

The tail stays in evaluation mode; norms that keep statistics (and their scales) stay as they are.

Axes: N rows of a step, n of a part of them, C classes, d features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Final, Protocol

import torch
from opacus.grad_sample import GradSampleModule
from torch import nn

from everlearn.learners.gradient.network import LENGTH, Network
from everlearn.privacy.mechanism import normals

PART_NUMBERS: Final = 1 << 26
"""Most numbers of per-row gradients at once: 256 MB."""
_MARGIN: Final = 1 - 1e-5
"""Of C: lengths are computed in float32."""
_SHORTEST: Final = 1e-12


class LossOf(Protocol):
    """Summed loss of the logits of some rows, a sum over rows alone."""

    def __call__(self, logits_nC: torch.Tensor, part: slice) -> torch.Tensor:
        """`part`: which of the step's rows these are."""


def freeze_statistics(tail: nn.Module) -> None:
    """Norms with statistics do not learn: other rows are in them, and Opacus knows no gradient a row of them."""
    for module in tail.modules():
        if any(True for _ in module.buffers(recurse=False)):
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(False)


class PrivateGradients:
    """Fills in the gradients of a network, whose head is linear."""

    def __init__(self, network: Network, *, noise: float, clip: float) -> None:
        """`noise`: z of one step; `clip`: C."""
        self._network = network
        self._noise = noise
        self._clip = clip
        self._tail: GradSampleModule | None = None
        self._size = 0
        if network.tail is not None:
            freeze_statistics(network.tail)
            network.forget_moving()
            self._tail = GradSampleModule(network.tail, loss_reduction="sum", strict=False)
            self._size = sum(found.numel() for found in network.tail.parameters() if found.requires_grad)
            for module in self._tail.iterate_submodules(network.tail):
                module.training = True  # of itself alone: Opacus looks at no others, and nothing here behaves otherwise

    def fill(self, inputs_Nn: torch.Tensor, loss_of: LossOf) -> None:
        """Sets each weight's gradient."""
        # Not in `grad`: what autograd adds there on its way is not bounded, and is thrown away.
        summed = {parameter: torch.zeros_like(parameter) for _, parameter in self._network.moving()}
        for part in self._parts(len(inputs_Nn)):
            self._add(inputs_Nn[part], partial(loss_of, part=part), summed)
        std = self._noise * self._clip
        for parameter, total in summed.items():
            drawn = normals(4 * parameter.numel()).reshape(4, -1).sum(axis=0) / 2
            noise = torch.from_numpy(drawn).reshape(parameter.shape).to(parameter) * std
            parameter.grad = (total + noise) / len(inputs_Nn)

    def _parts(self, count: int) -> Iterator[slice]:
        rows = max(1, PART_NUMBERS // max(self._size, 1))
        yield from (slice(start, min(start + rows, count)) for start in range(0, count, rows))

    def _add(
        self,
        inputs_nn: torch.Tensor,
        loss_of: Callable[[torch.Tensor], torch.Tensor],
        summed: dict[nn.Parameter, torch.Tensor],
    ) -> None:
        if self._tail is not None:
            inputs_nn = inputs_nn.detach().requires_grad_()  # or torch warns of hooks on a first layer
        features_nd = self._network.features(inputs_nn, self._tail)
        leaf_nd = features_nd.detach().requires_grad_(self._tail is not None)
        logits_nC = self._network.score(leaf_nd)
        over_logits_nC = torch.autograd.grad(loss_of(logits_nC), logits_nC, retain_graph=True)[0]
        with torch.no_grad():
            length_n1 = torch.linalg.vector_norm(leaf_nd, dim=1, keepdim=True).clamp_min(_SHORTEST)
            unit_nd = LENGTH * leaf_nd.detach() / length_n1
            # |a outer b|^2 = |a|^2 |b|^2, and the bias' part is |a|^2.
            squared_n = over_logits_nC.square().sum(1) * (unit_nd.square().sum(1) + 1)
        if self._tail is not None:
            features_nd.backward(torch.autograd.grad(logits_nC, leaf_nd, over_logits_nC)[0])
            for parameter in self._learning_tail():
                squared_n = squared_n + parameter.grad_sample.flatten(1).square().sum(1)
        with torch.no_grad():
            share_n = (self._clip * _MARGIN / squared_n.sqrt().clamp_min(_SHORTEST)).clamp(max=1.0)
            share_n = torch.where(torch.isfinite(squared_n), share_n, 0.0)  # a row without a finite gradient: none
            over_logits_nC = torch.nan_to_num(over_logits_nC) * share_n[:, None]
            top = self._network.top
            summed[top.weight] += over_logits_nC.T @ torch.nan_to_num(unit_nd)
            summed[top.bias] += over_logits_nC.sum(0)
            for parameter in self._learning_tail():
                summed[parameter] += torch.tensordot(share_n, torch.nan_to_num(parameter.grad_sample), dims=1)
                parameter.grad_sample = None

    def _learning_tail(self) -> Iterator[nn.Parameter]:
        if self._network.tail is not None:
            yield from (found for found in self._network.tail.parameters() if found.requires_grad)
