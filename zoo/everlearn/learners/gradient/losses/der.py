"""DER++: replayed rows keep the label and the scores they had."""

from __future__ import annotations

import torch

from everlearn.learners.gradient.losses.base import Scored, SoftmaxLoss


class Der(SoftmaxLoss):
    """Buzzega et al. 2020, "Dark experience for general continual learning", eq. 6.

    One draw serves both terms where the paper draws twice: rows of features are what a step costs.
    Scores of classes that came after a row do not count.
    """

    def __call__(self, scored: Scored) -> torch.Tensor:
        """See Loss."""
        loss = self.entropy(scored, slice(0, scored.new))
        if len(scored.class_B) == scored.new:
            return loss
        replayed = slice(scored.new, None)
        loss = loss + (self.declared.beta or 0.0) * self.entropy(scored, replayed)
        if scored.stored_RS is not None:
            known_RS = scored.stored_RS.isfinite()
            # where first, subtract then: the gradient of NaN * 0 is NaN.
            target_RS = torch.where(known_RS, scored.stored_RS, scored.logits_BS[replayed].detach())
            square = (scored.logits_BS[replayed] - target_RS).square().sum()
            loss = loss + (self.declared.alpha or 0.0) * square / known_RS.sum().clamp_min(1)
        return loss
