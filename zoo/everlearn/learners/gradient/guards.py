"""What is watched at every step, and what is refused before weights move.

On a CPU each step is judged before the optimizer runs. On a GPU that would make the host wait in every step, so figures
stay there, are read once a call, and the whole call is taken back: in either case nobody sees weights that a bad step
moved.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from everlearn.errors import PreconditionError

REASON = "NOT_FINITE"


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Of the steps of one call."""

    losses: tuple[float, ...] = ()
    gradient_norms: tuple[float, ...] = ()
    """Before clipping."""


@dataclass
class Watch:
    """Collects a call's figures without making the host wait for the device."""

    _losses: list[torch.Tensor] = field(default_factory=list)
    _norms: list[torch.Tensor] = field(default_factory=list)

    def admit(self, loss: torch.Tensor, gradient_norm: torch.Tensor) -> None:
        """Before the optimizer moves weights. Raises PreconditionError (reason NOT_FINITE) where the host can see."""
        self._losses.append(loss.detach())
        self._norms.append(gradient_norm)
        if loss.device.type == "cpu":
            _refuse(loss.item(), gradient_norm.item())

    def clear(self) -> None:
        """Begins a call."""
        self._losses, self._norms = [], []

    def read(self) -> Figures:
        """All figures in one transfer. Raises PreconditionError (reason NOT_FINITE): take the call back."""
        if not self._losses:
            return Figures()
        figures = torch.stack([*self._losses, *self._norms]).tolist()
        losses, norms = figures[: len(self._losses)], figures[len(self._losses) :]
        for loss, norm in zip(losses, norms, strict=True):
            _refuse(loss, norm)
        return Figures(losses=tuple(losses), gradient_norms=tuple(norms))


def norm_of(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Euclidean length of all together, on their device."""
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(tensors)))


def _refuse(loss: float, norm: float) -> None:
    if math.isfinite(loss) and math.isfinite(norm):
        return
    what = f"the loss is {loss}" if not math.isfinite(loss) else f"the gradient's norm is {norm}"
    raise PreconditionError(
        f"a step is refused: {what}, and the weights would be lost; they stay as they were. "
        "A smaller train.optimizer.learning_rate helps, or a clip_norm above 0",
        field="spec.train.optimizer.learning_rate",
        reason=REASON,
    )
