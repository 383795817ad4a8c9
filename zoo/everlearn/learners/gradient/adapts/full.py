"""Full: everything learns, from the input on."""

from __future__ import annotations

import torch

from everlearn.learners.gradient.adapts.base import Adapt, open_all


class Full(Adapt):
    """Girshick et al. 2014, "Rich feature hierarchies", section 2.3: the whole network is fine-tuned."""

    def open(self, tail: torch.nn.Module) -> None:
        """See Adapt."""
        open_all(tail)
