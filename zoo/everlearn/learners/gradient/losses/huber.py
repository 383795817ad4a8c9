"""Huber's loss: squared error of small errors, absolute of large ones, so that outliers do not pull."""

from __future__ import annotations

import torch
from torch.nn import functional

from everlearn.learners.gradient.losses.base import DenseLoss


class Huber(DenseLoss):
    """|e| <= delta: e^2 / 2, else delta (|e| - delta / 2) (Huber 1964)."""

    def each(self, logits_BS: torch.Tensor, target_BS: torch.Tensor) -> torch.Tensor:
        """See DenseLoss."""
        return functional.huber_loss(logits_BS, target_BS, delta=self.declared.delta or 1.0, reduction="none")
