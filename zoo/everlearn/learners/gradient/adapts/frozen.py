"""Frozen: features off the shelf, and all that is learned is the head."""

from __future__ import annotations

import torch

from everlearn.learners.gradient.adapts.base import Adapt


class Frozen(Adapt):
    """Razavian et al. 2014, "CNN features off-the-shelf". Such a model has no tail; of one nothing would learn."""

    def open(self, tail: torch.nn.Module) -> None:
        """See Adapt."""
        for parameter in tail.parameters():
            parameter.requires_grad_(False)
