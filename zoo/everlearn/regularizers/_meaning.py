"""What scores say of the truth, by task: the distribution that `distill` and `ewc` read them as.

    classification: one of C, softmax(z)          multilabel: C independent yes or no, sigmoid(z_c)
    regression: C independent values, N(z_c, 1), in the learner's unit, a sixth of an output's declared range

Axes: B samples in a step, C classes, labels or outputs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Final

import torch
from torch.nn import functional

from everlearn.values import Task


class Meaning(ABC):
    """A distribution over the truth, given scores."""

    @abstractmethod
    def divergence(self, teacher_BC: torch.Tensor, student_BC: torch.Tensor, temperature: float) -> torch.Tensor:
        """T^2 * mean_B KL(teacher || student), scores divided by T: a scalar; zero where the two agree."""

    @abstractmethod
    def information(self, logits_BC: torch.Tensor) -> torch.Tensor:
        """Fisher information of each score, [B, C]: E_y (d log p(y) / d z_c)^2."""

    @abstractmethod
    def surprise(self, logits_BC: torch.Tensor, random: torch.Generator) -> torch.Tensor:
        """-log p(y), less what is constant, of truths y that the model itself draws; summed over samples."""


class OneOf(Meaning):
    """Exactly one class."""

    def divergence(self, teacher_BC: torch.Tensor, student_BC: torch.Tensor, temperature: float) -> torch.Tensor:
        """See Meaning (Li & Hoiem 2016, eq. 2 to 4, in Hinton 2015's form)."""
        teacher_BC = functional.log_softmax(teacher_BC / temperature, 1)
        student_BC = functional.log_softmax(student_BC / temperature, 1)
        return temperature**2 * functional.kl_div(student_BC, teacher_BC, reduction="batchmean", log_target=True)

    def information(self, logits_BC: torch.Tensor) -> torch.Tensor:
        """p (1 - p)."""
        share_BC = logits_BC.softmax(1)
        return share_BC * (1 - share_BC)

    def surprise(self, logits_BC: torch.Tensor, random: torch.Generator) -> torch.Tensor:
        """See Meaning."""
        # Exponential races instead of multinomial, which may look at its weights from the host.
        race_BC = torch.empty_like(logits_BC).exponential_(generator=random)
        drawn_B = (logits_BC.detach() - race_BC.log()).argmax(1)
        return functional.cross_entropy(logits_BC, drawn_B, reduction="sum")


class Each(Meaning):
    """Yes or no for each label by itself. Summed over labels, as the loss is: one more does not weaken the others."""

    def divergence(self, teacher_BC: torch.Tensor, student_BC: torch.Tensor, temperature: float) -> torch.Tensor:
        """See Meaning: binary cross-entropy to the teacher's probabilities, less their entropy."""
        teacher_BC, student_BC = teacher_BC / temperature, student_BC / temperature
        yes_BC = teacher_BC.sigmoid()
        # log p - log q of yes, and of no.
        of_yes_BC = functional.logsigmoid(teacher_BC) - functional.logsigmoid(student_BC)
        of_no_BC = functional.logsigmoid(-teacher_BC) - functional.logsigmoid(-student_BC)
        apart_BC = yes_BC * of_yes_BC + (1 - yes_BC) * of_no_BC
        return temperature**2 * apart_BC.sum() / len(student_BC)

    def information(self, logits_BC: torch.Tensor) -> torch.Tensor:
        """p (1 - p)."""
        share_BC = logits_BC.sigmoid()
        return share_BC * (1 - share_BC)

    def surprise(self, logits_BC: torch.Tensor, random: torch.Generator) -> torch.Tensor:
        """See Meaning."""
        chance_BC = torch.empty_like(logits_BC).uniform_(generator=random)
        drawn_BC = (chance_BC < logits_BC.detach().sigmoid()).to(logits_BC.dtype)
        return functional.binary_cross_entropy_with_logits(logits_BC, drawn_BC, reduction="sum")


class Gaussian(Meaning):
    """A value for each output, with unit variance."""

    def divergence(self, teacher_BC: torch.Tensor, student_BC: torch.Tensor, temperature: float) -> torch.Tensor:
        """See Meaning: half the squared difference, whatever the temperature (T^2 and the two T cancel out)."""
        return 0.5 * (student_BC - teacher_BC).square().sum() / len(student_BC)

    def information(self, logits_BC: torch.Tensor) -> torch.Tensor:
        """One: how far off a value is does not depend on where it is."""
        return torch.ones_like(logits_BC)

    def surprise(self, logits_BC: torch.Tensor, random: torch.Generator) -> torch.Tensor:
        """See Meaning."""
        drawn_BC = logits_BC.detach() + torch.empty_like(logits_BC).normal_(generator=random)
        return 0.5 * (logits_BC - drawn_BC).square().sum()


MEANINGS: Final[Mapping[Task, Meaning]] = {
    "classification": OneOf(),
    "multilabel": Each(),
    "regression": Gaussian(),
}
