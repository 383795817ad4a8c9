"""Squared error: scores are to be numbers (regression).

Its curvature over weights is that of features of length 20 (see `network.LENGTH`): sgd wants a smaller rate (see
`spec.presets.RATES_OF`).
"""

from __future__ import annotations

import torch

from everlearn.learners.gradient.losses.base import DenseLoss


class Mse(DenseLoss):
    """(z - y)^2, without the half, as torch and scikit-learn have it."""

    def each(self, logits_BS: torch.Tensor, target_BS: torch.Tensor) -> torch.Tensor:
        """See DenseLoss."""
        return (logits_BS - target_BS).square()
