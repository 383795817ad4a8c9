"""The last blocks learn for as long as the model does: what is specific to the task lies at the top."""

from __future__ import annotations

import torch

from everlearn.learners.gradient.adapts.base import Adapt, open_all


class LastBlocks(Adapt):
    """Yosinski et al. 2014, "How transferable are features in deep neural networks?"; with replay at the cut Pellegrini
    et al. 2020, "Latent replay for real-time continual learning", section 3."""

    def open(self, tail: torch.nn.Module) -> None:
        """See Adapt."""
        open_all(tail)
