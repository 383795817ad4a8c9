"""First session: blocks, or adapters where a rank is declared, are fitted once on the first samples, and then rest.

When and on what, and whether they are kept, is `everlearn.learners.first_session`'s.
"""

from __future__ import annotations

import torch

from everlearn.backbones.lora import add_lora
from everlearn.learners.gradient.adapts.base import Adapt, open_all


class FirstSession(Adapt):
    """Panos et al. 2023, "First session adaptation", section 4."""

    def open(self, tail: torch.nn.Module) -> None:
        """See Adapt."""
        if self.declared.rank is None:
            open_all(tail)
        else:
            add_lora(tail, self.declared.rank, targets=self.declared.targets, seed=self.seed)
