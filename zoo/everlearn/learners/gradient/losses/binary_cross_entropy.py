"""Binary cross-entropy: each label is a yes or no of its own, so that a sample may have several, or none."""

from __future__ import annotations

import torch
from torch.nn import functional

from everlearn.learners.gradient.losses.base import DenseLoss


class BinaryCrossEntropy(DenseLoss):
    """The negative log-likelihood of independent labels (binary relevance), from logits.

    Smoothed towards one half: y (1 - e) + e / 2 (Szegedy et al. 2016, for two classes).
    """

    def each(self, logits_BS: torch.Tensor, target_BS: torch.Tensor) -> torch.Tensor:
        """See DenseLoss; targets are in 0 to 1."""
        smoothing = self.declared.label_smoothing or 0.0
        smooth_BS = target_BS * (1 - smoothing) + 0.5 * smoothing if smoothing else target_BS
        return functional.binary_cross_entropy_with_logits(logits_BS, smooth_BS, reduction="none")
