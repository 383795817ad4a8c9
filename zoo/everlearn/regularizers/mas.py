"""Memory aware synapses: weights that the outputs are sensitive to stay where they are; needs no label.

    penalty = strength * sum_i O_i (weight_i - anchor_i)^2,   O = E_x |d ||z(x)||^2 / d weight|

(Aljundi 2018, eq. 2 to 4, squared L2 norm of the scores z; here O fades: O <- decay * O + O_new.)

- A linear head: exact. The gradient of a sample is 2 z_c x_d, hence O_cd = 2 mean_B |z_Bc| |x_Bd|.
- A tail: |gradient of the batch's sum| instead of the sum of |gradients|, as the authors' own code does; it is a lower
  bound, and the nearer to it the more the samples agree in sign.
"""

from __future__ import annotations

import torch

from everlearn.regularizers._observed import Observed


class Mas(Observed):
    """MAS on the scores."""

    def of_head(self, logits_BC: torch.Tensor, input_Bd: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """2 |z| |x|, summed."""
        size_BC = 2 * logits_BC.abs()
        return size_BC.T @ input_Bd.abs(), size_BC.sum(0)

    def of_batch(self, logits_BC: torch.Tensor) -> torch.Tensor:
        """The squared norm of the scores."""
        return logits_BC.square().sum()

    def of_gradient(self, gradient: torch.Tensor) -> torch.Tensor:
        """Its size."""
        return gradient.float().abs()
