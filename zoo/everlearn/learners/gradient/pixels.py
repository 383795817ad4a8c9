"""Varies a step's new rows where they are the pixels themselves: all of the backbone learns, and nothing is below it.

Axes: N rows of a step, B of them new, H and W pixels.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Self

import torch

from everlearn.errors import InvalidError
from everlearn.learners.gradient.augment import Augmenter
from everlearn.learners.gradient.batches import Rows
from everlearn.learners.gradient.depth import Draws
from everlearn.spec.recipe import Augment
from everlearn.values import Front, FrontConfig


class Pixels:
    """What lies between the values at the cut and what augmentation is defined on: pixels in 0 to 1."""

    def __init__(self, front: FrontConfig, declared: Augment, draws: Draws) -> None:
        self._shape = (-1, *front.sample_shape)
        self._mean_311 = torch.tensor(front.mean, device=draws.random.device)[:, None, None]
        self._std_311 = torch.tensor(front.std, device=draws.random.device)[:, None, None]
        self._augmenter = Augmenter(declared)
        self._draws = draws

    @classmethod
    def where_declared(cls, front: Front | None, declared: Augment | None, draws: Draws, *, values: int) -> Self | None:
        """None where nothing is to be varied. `values`: at the cut, of a sample.

        Raises InvalidError where what is at the cut is no image.
        """
        if declared is None:
            return None
        if not isinstance(front, FrontConfig) or values != 3 * front.height * front.width:
            raise InvalidError(
                "train.augment varies images, and what this learner meets are none; declare adapt.kind: full for "
                "that, or leave augment out",
                field="spec.train.augment",
            )
        return cls(front, declared, draws)

    def varied(self, rows: Rows) -> Rows:
        """The new rows, each by its own draw; replayed ones as they are."""
        pixels_B3HW = rows.inputs_Nn[: rows.new].reshape(self._shape) * self._std_311 + self._mean_311
        pixels_B3HW = self._augmenter(pixels_B3HW.clamp(0, 1), self._draws.random)
        pixels_B3HW, partner_B, share_B = self._augmenter.blend(pixels_B3HW, self._draws.random)
        inputs_Bn = ((pixels_B3HW - self._mean_311) / self._std_311).flatten(1)
        replayed = len(rows.class_N) - rows.new
        rows = replace(rows, inputs_Nn=torch.cat([inputs_Bn, rows.inputs_Nn[rows.new :]]))
        if partner_B is None or share_B is None:
            return rows
        own_R = rows.new + torch.arange(replayed, device=partner_B.device)
        weight_N = torch.cat([share_B, share_B.new_ones(replayed)])
        return replace(rows, partner_N=torch.cat([partner_B, own_R]), weight=weight_N)
