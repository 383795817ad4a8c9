"""Elastic weight consolidation, online: weights that the scores depend on stay where they are.

    penalty = strength / 2 * sum_i F_i (weight_i - anchor_i)^2,   F <- decay * F + F_new

(Kirkpatrick 2017, eq. 3; Schwarz 2018, eq. 9: one anchor, the last.) F is the diagonal of the *model's own* Fisher
matrix, labels taken from its softmax (not the empirical one, whose labels are the stream's: Kunstner 2019), averaged
over the samples of the steps since the last consolidation. It needs no label and does not see replayed losses,
penalties or clipping.

- A linear head: exact. E_y[(1[y=c] - p_c)^2] = p_c (1 - p_c), hence F_cd = mean_B p_Bc (1 - p_Bc) x_Bd^2.
- A tail: the squared gradient of sum_B log p(y_B | x_B), y_B drawn from the softmax. Scores have mean zero under the
  model and samples are drawn independently, so cross terms vanish and its mean is the sum over samples, without a
  gradient per sample (the Gauss-Newton-Bartlett estimator, Liu 2023, section 2.3).

Of several labels a sample the model's distribution is a Bernoulli each, p the sigmoid, and all else as above; of values
it is a Gaussian of unit variance each, hence F_cd = mean_B x_Bd^2, in the unit that values are learned in.
"""

from __future__ import annotations

from typing import ClassVar

import torch

from everlearn.regularizers._meaning import MEANINGS
from everlearn.regularizers._observed import Observed


class Ewc(Observed):
    """Online EWC with the model's diagonal Fisher."""

    factor: ClassVar[float] = 0.5

    def of_head(self, logits_BC: torch.Tensor, input_Bd: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The scores' information times x^2, summed."""
        known_BC = MEANINGS[self.task].information(logits_BC)
        return known_BC.T @ input_Bd.square(), known_BC.sum(0)

    def of_batch(self, logits_BC: torch.Tensor) -> torch.Tensor:
        """Log-likelihood of a truth that the model draws."""
        random = torch.Generator(logits_BC.device)
        random.manual_seed(self.steps)
        return MEANINGS[self.task].surprise(logits_BC, random)

    def of_gradient(self, gradient: torch.Tensor) -> torch.Tensor:
        """Its square."""
        return gradient.float().square()
