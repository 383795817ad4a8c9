"""One gradient step, from top to bottom: forward, loss and penalties, backward, guard, clip, move, consolidate.

Axes: N rows of a step, C classes, S classes seen, n values at the cut, d features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from everlearn.learners.gradient import optimizers
from everlearn.learners.gradient.batches import Competing, Rows, sent
from everlearn.learners.gradient.depth import Draws
from everlearn.learners.gradient.guards import Watch, norm_of
from everlearn.learners.gradient.losses import loss_for
from everlearn.learners.gradient.losses.base import Scored
from everlearn.learners.gradient.network import Network
from everlearn.learners.gradient.recipe import Recipe
from everlearn.learners.gradient.schedules import share_of_rate
from everlearn.regularizers.base import Regularizer

if TYPE_CHECKING:
    from everlearn.learners.gradient.private import PrivateGradients

SHARE_MEMORY = 0.9
"""What a step leaves of the class shares that logits are adjusted by: they follow some ten steps."""
LEAST_SHARE = 1e-3
"""Of a class that was not trained on lately: its logarithm stays finite."""


class Stepper:
    """Moves a network's weights; holds what that takes from step to step."""

    def __init__(self, network: Network, recipe: Recipe, regularizers: Sequence[Regularizer], draws: Draws) -> None:
        self.network = network
        self.regularizers = regularizers
        self.watch = Watch()
        self.done = 0
        """Steps so far: where the schedule stands."""
        self.rate = 0.0
        """The head's, in the last step."""
        self.share_C: npt.NDArray[np.float64] = np.zeros(0)
        """Of each class in what was trained on lately; where logits are adjusted."""
        self.through: Callable[[torch.Tensor], torch.Tensor] | None = None
        """What computes a step's features in the tail's stead: the tail, compiled."""
        self._train = recipe.train
        self._draws = draws
        self.loss = loss_for(recipe.loss)
        """Without penalties."""
        self.private: PrivateGradients | None = None
        """What hides each row in a step's gradient; None where nothing is hidden."""
        self._adjusts = bool(recipe.loss.logit_adjustment)
        self.renew()

    def renew(self) -> None:
        """An optimizer without state, over the network's parameters as they are now."""
        self.optimizer = optimizers.optimizer_for(self._train.optimizer, self.network)

    @property
    def is_head_alone(self) -> bool:
        """Whether the tail rests in the next step."""
        return self.done < self._train.freeze_until

    def step(self, rows: Rows, competing: Competing) -> None:
        """One step. Raises PreconditionError (reason NOT_FINITE) before weights move; on a GPU `watch.read` does."""
        if self.private is not None:
            self._step_in_noise(self.private, rows, competing)
            return
        moving = self.network.moving()
        for _, parameter in moving:
            parameter.grad = None
        logits_NC = self._forward(rows.inputs_Nn)
        loss = self.loss(self._scored(rows, logits_NC, competing))
        for regularizer in self.regularizers:
            loss = loss + regularizer.penalty(self.network, rows.inputs_Nn, logits_NC)
        loss = self._with_l1(loss)
        loss.backward()
        if self.is_head_alone and self.network.tail is not None:
            # Of penalties, and of decay, which an optimizer takes where there is any gradient.
            for parameter in self.network.tail.parameters():
                parameter.grad = None
        gradients = [parameter.grad for _, parameter in moving if parameter.grad is not None]
        norm = norm_of(gradients)
        self.watch.admit(loss, norm)
        clip = self._train.optimizer.clip_norm
        if clip:
            # As torch's clip_grad_norm_, whose grouping by device and dtype costs more than the product.
            torch._foreach_mul_(gradients, (clip / (norm + 1e-6)).clamp(max=1.0))
        self._move(rows, logits_NC)

    def _step_in_noise(self, private: PrivateGradients, rows: Rows, competing: Competing) -> None:
        """Nothing is watched: a loss or a norm would tell of rows."""

        def loss_of(logits_nC: torch.Tensor, part: slice) -> torch.Tensor:
            some = replace(rows, class_N=rows.class_N[part], new=len(rows.class_N[part]))
            return self.loss(self._scored(some, logits_nC, competing)) * some.new

        private.fill(rows.inputs_Nn, loss_of)
        share = share_of_rate(self._train.schedule, self.done)
        self.rate = optimizers.set_rate(self.optimizer, self._train.optimizer, share=share, rows=len(rows.class_N))
        self.optimizer.step()
        self.done += 1

    def _forward(self, inputs_Nn: torch.Tensor) -> torch.Tensor:
        self._draws.is_on = True
        try:
            with torch.set_grad_enabled(not self.is_head_alone):
                features_Nd = self.network.features(inputs_Nn, self.through)
        finally:
            self._draws.is_on = False
        dropped = self._train.dropout
        if not dropped:
            return self.network.score(features_Nd)
        kept_Nd = torch.empty_like(features_Nd).bernoulli_(1 - dropped, generator=self._draws.random)
        return self.network.score(features_Nd, kept_Nd.div_(1 - dropped))

    def _scored(self, rows: Rows, logits_NC: torch.Tensor, competing: Competing) -> Scored:
        device = logits_NC.device
        position_N = competing.positions(rows.class_N)
        present_S = None
        if self.loss.needs_present:
            is_present_S = np.zeros(competing.count, np.bool_)
            is_present_S[position_N[: rows.new]] = True
            present_S = sent(is_present_S, device)
        class_B = sent(position_N, device)
        return Scored(
            logits_BS=competing.columns(logits_NC),
            class_B=class_B,
            new=rows.new,
            partner_B=None if rows.partner_N is None else class_B[rows.partner_N],
            weight=rows.weight,
            present_S=present_S,
            stored_RS=None if rows.stored_RC is None else competing.columns(rows.stored_RC),
            target_BS=None if rows.target_NC is None else competing.columns(_blended(rows, rows.target_NC)),
            log_share_S=self._log_share(rows, competing, device) if self._adjusts else None,
        )

    def _log_share(self, rows: Rows, competing: Competing, device: torch.device) -> torch.Tensor:
        now_C = np.bincount(rows.class_N, minlength=self.network.classes) / len(rows.class_N)
        before_C = np.pad(self.share_C, (0, len(now_C) - len(self.share_C)))
        # The first step has no past to weigh against.
        self.share_C = SHARE_MEMORY * before_C + (1 - SHARE_MEMORY) * now_C if before_C.any() else now_C
        log_1C = sent(np.log(np.maximum(self.share_C, LEAST_SHARE))[None].astype(np.float32), device)
        return competing.columns(log_1C)[0]

    def _with_l1(self, loss: torch.Tensor) -> torch.Tensor:
        strength = self._train.optimizer.l1
        if not strength:
            return loss
        weights = (parameter for _, parameter in self.network.moving() if parameter.ndim > 1)
        return loss + strength * torch.stack([weight.abs().sum() for weight in weights]).sum()

    def _move(self, rows: Rows, logits_NC: torch.Tensor) -> None:
        share = share_of_rate(self._train.schedule, self.done)
        self.rate = optimizers.set_rate(self.optimizer, self._train.optimizer, share=share, rows=len(rows.class_N))
        detached_NC = logits_NC.detach()
        for regularizer in self.regularizers:
            regularizer.observe(self.network, rows.inputs_Nn, detached_NC)
        self.optimizer.step()
        self.done += 1
        for regularizer in self.regularizers:
            regularizer.moved(self.network)
            if regularizer.declared.every is not None and self.done % regularizer.declared.every == 0:
                regularizer.consolidate(self.network)


def _blended(rows: Rows, target_NC: torch.Tensor) -> torch.Tensor:
    """mixup: targets are mixed as their rows were."""
    if rows.partner_N is None:
        return target_NC
    weight = rows.weight[:, None] if isinstance(rows.weight, torch.Tensor) else rows.weight
    return torch.lerp(target_NC[rows.partner_N], target_NC, weight)
