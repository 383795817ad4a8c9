"""LoRA: adapters of low rank learn in the last blocks, the weights beside them rest; folded in when they leave."""

from __future__ import annotations

import torch

from everlearn.backbones.lora import add_lora
from everlearn.learners.gradient.adapts.base import Adapt


class Lora(Adapt):
    """Hu et al. 2021, "LoRA: low-rank adaptation of large language models", eq. 3."""

    def open(self, tail: torch.nn.Module) -> None:
        """See Adapt."""
        assert self.declared.rank is not None  # the declaration fills it in
        add_lora(tail, self.declared.rank, targets=self.declared.targets, seed=self.seed)
