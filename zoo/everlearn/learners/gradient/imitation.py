"""A small network learns to give a large one's features: no labels, no stored sample, gradient steps on what flows by.

    pixels -> student -> features [N, s] -> map [s, d] -> the teacher's features, standardised      loss: their MSE

FitNets (Romero 2015, arXiv:1412.6550, eq. 3) with the last layer as the hint. The teacher's features are standardised
by their mean and deviation so far, so that each counts alike: a loss of 1 is the mean's, 0 the teacher itself.

Batch norm: the stream's statistics are followed slowly, without a gradient, and each step computes what is served.
A student that comes untrained has none of its own, and one that comes trained has those of other images.

Axes: N rows, n values of an image, s features of the student, d features of the teacher.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import safetensors.numpy
import torch
from torch import nn
from torch.nn import functional

from everlearn.backbones.cut import TailModule
from everlearn.backbones.tail import Tail
from everlearn.backbones.tail_torch import build_tail_module, weights_of
from everlearn.errors import DataLossError
from everlearn.learners.gradient import optimizers
from everlearn.learners.gradient.guards import Watch, norm_of
from everlearn.learners.gradient.schedules import share_of_rate
from everlearn.learners.gradient.state import State, pack, unpack
from everlearn.spec.model import DistillTo
from everlearn.values import FeaturesBd

_FOLLOW = 0.02
"""Share of batch norm's statistics that a batch renews, once the first ones have settled them."""
_LEAST_ROWS = 8
"""Rows below which a batch says too little of statistics."""
_FLOOR = 1e-3
"""Least variance of a teacher's feature, relative to the mean over features: a dead one stays dead."""


@dataclass(frozen=True, kw_only=True)
class Imitated:
    """Of one batch."""

    predicted_Nd: FeaturesBd
    """The teacher's features as the student gave them before it learned the batch."""
    loss: float
    """Of the last step: share of the teacher's variance that is missed, about; 1 is what its mean would miss."""


class Pair(nn.Module):  # type: ignore[misc]  # torch's types are skipped, see pyproject
    """Student and map, named as the optimizers expect it."""

    def __init__(self, tail: TailModule, dim: int) -> None:
        super().__init__()
        self.tail = tail.eval()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.top = nn.Linear(_dim_of(tail), dim)

    def moving(self) -> list[tuple[str, nn.Parameter]]:
        """See Moving."""
        return list(self.named_parameters())

    def forward(self, pixels_Nn: torch.Tensor) -> torch.Tensor:
        """Standardised features of the teacher."""
        return self.top(self.tail(pixels_Nn))


class Imitation:
    """The student while it learns."""

    def __init__(self, tail: Tail, dim: int, declared: DistillTo, *, device: str = "cpu") -> None:
        """`tail`: the whole student, on pixels. `dim`: d. Raises BackboneError where timm cannot build it."""
        self._tail = tail
        self._declared = declared
        self._device = torch.device(device)
        self._pair = Pair(build_tail_module(tail), dim).to(self._device)
        self._optimizer = optimizers.optimizer_for(declared.optimizer, self._pair)
        self._watch = Watch()
        self.steps = 0
        self.samples = 0
        self._batches = 0
        self._mean_d: npt.NDArray[np.float64] = np.zeros(dim)
        self._square_d: npt.NDArray[np.float64] = np.zeros(dim)
        """Sum of squared distances from the mean."""

    def learn(self, pixels_Nn: FeaturesBd, features_Nd: FeaturesBd, *, steps: int | None = None) -> Imitated:
        """Some steps, by default those declared, towards the teacher's features. Raises PreconditionError (reason
        NOT_FINITE) before a step that would lose the weights. A copy of `pixels_Nn` on a GPU is overwritten."""
        inputs_Nn = torch.from_numpy(pixels_Nn).to(self._device)
        try:
            return self._learn(inputs_Nn, features_Nd, steps or self._declared.steps)
        finally:
            if inputs_Nn.is_cuda:  # elsewhere they are the caller's own
                inputs_Nn.zero_()

    def _learn(self, inputs_Nn: torch.Tensor, features_Nd: FeaturesBd, steps: int) -> Imitated:
        with torch.no_grad():
            before_Nd = self._pair(inputs_Nn).cpu().numpy()
        predicted_Nd = (before_Nd * self._deviation_d + self._mean_d).astype(np.float32)
        self._observe(features_Nd)
        self._follow(inputs_Nn)
        wanted_Nd = ((features_Nd - self._mean_d) / self._deviation_d).astype(np.float32)
        target_Nd = torch.from_numpy(wanted_Nd).to(self._device)
        self._watch.clear()
        for _ in range(steps):
            self._step(inputs_Nn, target_Nd)
        return Imitated(predicted_Nd=predicted_Nd, loss=self._watch.read().losses[-1])

    def weights(self) -> tuple[bytes, npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """The student's weights as safetensors, and the map to the teacher's features as they are: [s, d] and [d]."""
        found = weights_of(self._pair.tail)
        kept = {name: np.ascontiguousarray(found[name]) for name in sorted(self._tail.arrays)}
        top = weights_of(self._pair.top)
        weight_sd = top["weight"].T * self._deviation_d
        bias_d = top["bias"] * self._deviation_d + self._mean_d
        return safetensors.numpy.save(kept), weight_sd.astype(np.float32), bias_d.astype(np.float32)

    def to_bytes(self) -> bytes:
        """All of it, to go on from bit for bit."""
        tensors = {f"weights.{name}": value for name, value in self._pair.state_dict().items()}
        kept = optimizers.state_of(self._optimizer, self._pair)
        tensors |= {f"optimizer.{name}": value for name, value in kept.items()}
        tensors |= {"mean": torch.from_numpy(self._mean_d), "square": torch.from_numpy(self._square_d)}
        header = {
            "student": self._tail.graph_digest,
            "optimizer": self._declared.optimizer.kind,
            "steps": self.steps,
            "samples": self.samples,
            "batches": self._batches,
        }
        return pack(State(tensors=tensors, header=header))

    def restore(self, data: bytes) -> None:
        """What `to_bytes` gave; an optimizer of another kind begins anew. Raises DataLossError for another's."""
        state = unpack(data)
        try:
            if state.header["student"] != self._tail.graph_digest:
                raise ValueError("it is of another network")
            self._pair.load_state_dict(state.part("weights."))
            if state.header["optimizer"] == self._declared.optimizer.kind:
                optimizers.restore(self._optimizer, self._pair, state.part("optimizer."))
            self._mean_d, self._square_d = state.tensors["mean"].numpy(), state.tensors["square"].numpy()
            self.steps, self.samples = int(state.header["steps"]), int(state.header["samples"])
            self._batches = int(state.header["batches"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise DataLossError(f"a stored student that cannot be taken up: {error}") from error

    # -- inside -------------------------------------------------------------------------------------------------

    @property
    def _deviation_d(self) -> npt.NDArray[np.float64]:
        if not self.samples:
            return np.ones_like(self._mean_d)
        variance_d = self._square_d / self.samples
        deviation_d: npt.NDArray[np.float64] = np.sqrt(np.maximum(variance_d, _FLOOR * variance_d.mean() + 1e-12))
        return deviation_d

    def _observe(self, features_Nd: FeaturesBd) -> None:
        """Chan, Golub & LeVeque 1983: mean and squares of two sets together."""
        rows, mean_d = len(features_Nd), features_Nd.mean(axis=0, dtype=np.float64)
        total, apart_d = self.samples + rows, mean_d - self._mean_d
        self._square_d += ((features_Nd - mean_d) ** 2).sum(axis=0) + apart_d**2 * (self.samples * rows / total)
        self._mean_d = self._mean_d + apart_d * (rows / total)
        self.samples = total

    def _follow(self, inputs_Nn: torch.Tensor) -> None:
        """Batch norm's statistics take up a batch."""
        norms = [module for module in self._pair.tail.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
        if not norms or len(inputs_Nn) < _LEAST_ROWS:
            return
        self._batches += 1
        try:
            for norm in norms:
                norm.training, norm.momentum = True, max(_FOLLOW, 1 / (self._batches + 1))
            with torch.no_grad():
                self._pair.tail(inputs_Nn)
        finally:
            for norm in norms:
                norm.training = False

    def _step(self, inputs_Nn: torch.Tensor, target_Nd: torch.Tensor) -> None:
        declared, moving = self._declared.optimizer, self._pair.moving()
        for _, parameter in moving:
            parameter.grad = None
        loss = functional.mse_loss(self._pair(inputs_Nn), target_Nd)
        penalised = loss
        if declared.l1:
            penalised = loss + declared.l1 * torch.stack([p.abs().sum() for _, p in moving if p.ndim > 1]).sum()
        penalised.backward()
        gradients = [parameter.grad for _, parameter in moving if parameter.grad is not None]
        norm = norm_of(gradients)
        self._watch.admit(loss, norm)
        if declared.clip_norm:
            torch._foreach_mul_(gradients, (declared.clip_norm / (norm + 1e-6)).clamp(max=1.0))
        share = share_of_rate(self._declared.schedule, self.steps)
        optimizers.set_rate(self._optimizer, declared, share=share, rows=len(inputs_Nn))
        self._optimizer.step()
        self.steps += 1


def _dim_of(tail: TailModule) -> int:
    with torch.no_grad():
        return int(tail(torch.zeros(1, math.prod(tail.cut_shape))).shape[1])
