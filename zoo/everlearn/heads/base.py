"""What a head is: a pure function of the sums that returns a linear classifier."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

from everlearn.errors import SpecError
from everlearn.sums import Sums
from everlearn.target_sums import TargetSums
from everlearn.values import FeatureScale, LinearHead, Task


class Head(ABC):
    """Closed form, deterministic: equal sums give bit-equal heads, whatever order the labels arrived in.

    (With one BLAS and one number of its threads; another one moves a weight's last bits, about 1e-14 of the largest.)
    """

    TASKS: ClassVar[frozenset[Task]] = frozenset({"classification"})
    """What it can be solved for; a declaration of another task is refused."""

    def __init__(self, *, regularization: Literal["auto"] | float = "auto") -> None:
        self.regularization = regularization

    @abstractmethod
    def solve(self, sums: Sums, scale: FeatureScale, *, hint: float | None = None) -> LinearHead:
        """Solves on the features that the integers stand for (integer * scale.step_d).

        `hint`: the regularization of an earlier head. It makes the solve quick (no search) and approximate; without
        it the regularization is chosen from the sums alone.

        Raises PreconditionError (reason EMPTY_MEMORY) where no sample has been learned.
        """

    # Not abstract: most heads tell classes apart, and have nothing to say of several targets.
    def solve_targets(self, sums: TargetSums, scale: FeatureScale, *, hint: float | None = None) -> LinearHead:
        """As `solve`, of samples with several labels, or with values. Raises SpecError where it is not in TASKS."""
        kind = type(self).__module__.rpartition(".")[2]
        raise SpecError(
            f"{kind} tells single labels apart and knows no {sums.task}; write ridge", field="spec.head.kind"
        )
