"""What a head is: a pure function of the sums that returns a linear classifier."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

from everlearn.sums import Sums
from everlearn.values import FeatureScale, LinearHead


class Head(ABC):
    """Closed form, deterministic: equal sums give bit-equal heads, whatever order the labels arrived in.

    (With one BLAS and one number of its threads; another one moves a weight's last bits, about 1e-14 of the largest.)
    """

    def __init__(self, *, regularization: Literal["auto"] | float = "auto") -> None:
        self.regularization = regularization

    @abstractmethod
    def solve(self, sums: Sums, scale: FeatureScale, *, hint: float | None = None) -> LinearHead:
        """Solves on the features that the integers stand for (integer * scale.step_d).

        `hint`: the regularization of an earlier head. It makes the solve quick (no search) and approximate; without
        it the regularization is chosen from the sums alone.

        Raises PreconditionError (reason EMPTY_MEMORY) where no sample has been learned.
        """
