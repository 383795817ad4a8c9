"""What a loss is: a pure function of a step's logits and targets. Label smoothing and logit adjustment are common.

Axes: B rows of a step, the new ones first; S classes that have been seen: those that have not do not compete.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch.nn import functional

from everlearn.spec.recipe import Loss as Declared


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A step's rows after the forward pass."""

    logits_BS: torch.Tensor
    class_B: torch.Tensor
    """int64, on the logits' device."""
    new: int
    """Rows that the stream brought; those after them were replayed."""
    partner_B: torch.Tensor | None = None
    """mixup: the class of the row that each was mixed with, a new one with a new one; None where none was."""
    weight: float = 1.0
    """mixup: share of a row's own class."""
    present_S: torch.Tensor | None = None
    """bool: classes of the new rows; for losses that ask for it."""
    stored_RS: torch.Tensor | None = None
    """Logits that the replayed rows had, NaN where there were none; None where the memory keeps none."""
    log_share_S: torch.Tensor | None = None
    """log of each class's share of what was trained on lately; where logits are adjusted."""


class Loss(ABC):
    """One way to judge logits."""

    needs_present = False
    """Whether it asks for `present_S`."""

    def __init__(self, declared: Declared) -> None:
        self.declared = declared

    @abstractmethod
    def __call__(self, scored: Scored) -> torch.Tensor:
        """A scalar with its gradient; no host-device synchronisation."""

    def entropy(self, scored: Scored, rows: slice, *, allowed_S: torch.Tensor | None = None) -> torch.Tensor:
        """Mean cross-entropy of some rows, among the allowed classes (None = all).

        Logits are raised by tau * log of the class's share (Menon et al. 2021, eq. 10); targets are smoothed evenly
        over the allowed classes (Szegedy et al. 2016) and mixed (Zhang et al. 2018).
        """
        logits_BS = scored.logits_BS[rows]
        if scored.log_share_S is not None:
            logits_BS = logits_BS + self.declared.logit_adjustment * scored.log_share_S
        loss = self._smooth(logits_BS, scored.class_B[rows], allowed_S)
        if scored.partner_B is None:
            return loss
        other = self._smooth(logits_BS, scored.partner_B[rows], allowed_S)
        return scored.weight * loss + (1 - scored.weight) * other

    def _smooth(self, logits_BS: torch.Tensor, class_B: torch.Tensor, allowed_S: torch.Tensor | None) -> torch.Tensor:
        smoothing = self.declared.label_smoothing
        if allowed_S is None:
            return functional.cross_entropy(logits_BS, class_B, label_smoothing=smoothing)
        logits_BS = logits_BS.masked_fill(~allowed_S, -torch.inf)
        hard = functional.cross_entropy(logits_BS, class_B)
        if not smoothing:
            return hard
        log_BS = functional.log_softmax(logits_BS, dim=1).masked_fill(~allowed_S, 0.0)
        even = -(log_BS.sum(dim=1) / allowed_S.sum()).mean()
        return (1 - smoothing) * hard + smoothing * even
