"""What a loss is: a pure function of a step's scores and targets, a mean over its rows.

Targets are classes, or dense: a number for each score (several labels at once, a vector to regress). A loss of dense
targets takes classes too, as vectors of ones and zeros; the softmax losses take classes alone.

Axes: B rows of a step, the new ones first; R replayed rows; S classes that have been seen (those that have not do not
compete), or outputs.
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
    """int64, on the logits' device; not looked at where there are dense targets."""
    new: int
    """Rows that the stream brought; those after them were replayed."""
    target_BS: torch.Tensor | None = None
    """Dense targets, NaN where one is not known; None where classes are meant."""
    partner_B: torch.Tensor | None = None
    """mixup: the class of the row that each was mixed with, a new one with a new one; None where none was."""
    weight: float | torch.Tensor = 1.0
    """mixup: share of a row's own class; [B] where rows differ."""
    present_S: torch.Tensor | None = None
    """bool: classes of the new rows; for losses that ask for it."""
    stored_RS: torch.Tensor | None = None
    """Logits that the replayed rows had, NaN where there were none; None where the memory keeps none."""
    log_share_S: torch.Tensor | None = None
    """log of each class's share of what was trained on lately; where logits are adjusted."""


class Loss(ABC):
    """One way to judge scores."""

    needs_present = False
    """Whether it asks for `present_S`."""

    def __init__(self, declared: Declared) -> None:
        """`declared` is complete: no option of its kind is None."""
        self.declared = declared

    @abstractmethod
    def __call__(self, scored: Scored) -> torch.Tensor:
        """A scalar with its gradient; no host-device synchronisation."""


class SoftmaxLoss(Loss):
    """Of those whose scores become probabilities that sum to one: label smoothing, logit adjustment and mixup."""

    def entropy(self, scored: Scored, rows: slice, *, allowed_S: torch.Tensor | None = None) -> torch.Tensor:
        """Mean cross-entropy of some rows, among the allowed classes (None = all).

        Logits are raised by tau * log of the class's share (Menon et al. 2021, eq. 10); targets are smoothed evenly
        over the allowed classes (Szegedy et al. 2016) and mixed (Zhang et al. 2018).
        """
        logits_BS = scored.logits_BS[rows]
        if scored.log_share_S is not None:
            logits_BS = logits_BS + (self.declared.logit_adjustment or 0.0) * scored.log_share_S
        if scored.partner_B is None:
            return self._smooth(logits_BS, scored.class_B[rows], allowed_S, "mean")
        own_B = self._smooth(logits_BS, scored.class_B[rows], allowed_S, "none")
        other_B = self._smooth(logits_BS, scored.partner_B[rows], allowed_S, "none")
        weight = scored.weight[rows] if isinstance(scored.weight, torch.Tensor) else scored.weight
        return (weight * own_B + (1 - weight) * other_B).mean()

    def _smooth(
        self, logits_BS: torch.Tensor, class_B: torch.Tensor, allowed_S: torch.Tensor | None, reduction: str
    ) -> torch.Tensor:
        smoothing = self.declared.label_smoothing or 0.0
        if allowed_S is None:
            return functional.cross_entropy(logits_BS, class_B, label_smoothing=smoothing, reduction=reduction)
        logits_BS = logits_BS.masked_fill(~allowed_S, -torch.inf)
        hard = functional.cross_entropy(logits_BS, class_B, reduction=reduction)
        if not smoothing:
            return hard
        log_BS = functional.log_softmax(logits_BS, dim=1).masked_fill(~allowed_S, 0.0)
        even_B = -(log_BS.sum(dim=1) / allowed_S.sum())
        return (1 - smoothing) * hard + smoothing * (even_B.mean() if reduction == "mean" else even_B)


class DenseLoss(Loss):
    """Of those that judge each score by itself."""

    def __call__(self, scored: Scored) -> torch.Tensor:
        """The sum over a row's known targets, as a mean over rows: an output more does not weaken the others."""
        target_BS = targets_of(scored)
        known_BS = target_BS.isfinite()
        # where first, judge then: the gradient of NaN * 0 is NaN.
        each_BS = self.each(scored.logits_BS, torch.where(known_BS, target_BS, scored.logits_BS.detach()))
        return torch.where(known_BS, each_BS, 0.0).sum() / max(len(target_BS), 1)

    @abstractmethod
    def each(self, logits_BS: torch.Tensor, target_BS: torch.Tensor) -> torch.Tensor:
        """The loss of each score [B, S]; targets are finite."""


def targets_of(scored: Scored) -> torch.Tensor:
    """Dense targets [B, S]: those that are there, or classes as ones and zeros, mixed where rows were."""
    if scored.target_BS is not None:
        return scored.target_BS
    ones_BS = torch.zeros_like(scored.logits_BS).scatter_(1, scored.class_B[:, None], 1.0)
    if scored.partner_B is None:
        return ones_BS
    other_BS = torch.zeros_like(scored.logits_BS).scatter_(1, scored.partner_B[:, None], 1.0)
    weight = scored.weight[:, None] if isinstance(scored.weight, torch.Tensor) else scored.weight
    return weight * ones_BS + (1 - weight) * other_BS
