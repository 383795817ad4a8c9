"""Cross-entropy over all classes seen, new and replayed rows alike."""

from __future__ import annotations

import torch

from everlearn.learners.gradient.losses.base import Scored, SoftmaxLoss


class CrossEntropy(SoftmaxLoss):
    """The mean over a step's rows (experience replay, Chaudhry et al. 2019)."""

    def __call__(self, scored: Scored) -> torch.Tensor:
        """See Loss."""
        return self.entropy(scored, slice(None))
