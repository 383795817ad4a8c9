"""ER-ACE: the stream's rows compete only within their batch's classes, so that they do not push old classes down."""

from __future__ import annotations

import torch

from everlearn.learners.gradient.losses.base import Scored, SoftmaxLoss


class ErAce(SoftmaxLoss):
    """Caccia et al. 2022, "New insights on reducing abrupt representation change", eq. 4: the sum of two means."""

    needs_present = True

    def __call__(self, scored: Scored) -> torch.Tensor:
        """See Loss."""
        loss = self.entropy(scored, slice(0, scored.new), allowed_S=scored.present_S)
        if len(scored.class_B) > scored.new:
            loss = loss + self.entropy(scored, slice(scored.new, None))
        return loss
