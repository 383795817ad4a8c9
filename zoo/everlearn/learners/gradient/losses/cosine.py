"""Cosine loss: scores are to point where the target points, however long they are."""

from __future__ import annotations

import torch
from torch.nn import functional

from everlearn.learners.gradient.losses.base import Loss, Scored, targets_of


class Cosine(Loss):
    """1 - cos(z, y), over classes as unit vectors (Barz & Denzler 2020, eq. 3) or over vectors to regress.

    Bounded, so that a wrong label pulls no harder than 2. Rows of which not all is known have no direction: left out.
    """

    def __call__(self, scored: Scored) -> torch.Tensor:
        """See Loss."""
        target_BS = targets_of(scored)
        known_B = target_BS.isfinite().all(dim=1)
        target_BS = torch.where(known_B[:, None], target_BS, 1.0)
        apart_B = 1 - functional.cosine_similarity(scored.logits_BS, target_BS, dim=1)
        return torch.where(known_B, apart_B, 0.0).sum() / max(len(target_BS), 1)
