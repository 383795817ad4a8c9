"""What a record of test-then-train is, whatever a sample's truth is: the part that learning and serving rely on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import numpy.typing as npt

from everlearn.metrics.steps import Steps
from everlearn.truth import Truth
from everlearn.values import FeaturesBd


class Record(ABC):
    """Counts and sums only: no sample, no feature, no score. Threads may test, read and serialise it at once."""

    window: int
    """Samples over which the windowed figures reach."""
    steps: Steps
    """What the steps showed that batches named; of values none is counted, for no share of them is right."""
    is_kept: bool = True
    """Whether it counts; where it does not, nobody needs to be tested."""

    @abstractmethod
    def test(
        self,
        truth: Truth,
        client: str,
        *,
        scores_BC: npt.NDArray[np.float32] | None,
        known: tuple[str, ...],
        features_Bd: FeaturesBd,
        step: str = "",
    ) -> None:
        """Counts a batch that was predicted before it is learned; `scores_BC` None = there was no head.

        `known`: label or output of each column; `step`: what the batch belongs to, empty where nobody says. Raises
        InputError where lengths differ, or for a step too many (see Steps.refusal); then nothing is counted.
        """

    @abstractmethod
    def forget_client(self, client: str) -> None:
        """Its name goes: its counts stay, under OTHER_CLIENTS, in totals that are of all. What was summed of features
        begins anew, for it cannot be taken apart."""

    @property
    @abstractmethod
    def tested(self) -> int:
        """Samples."""

    @property
    @abstractmethod
    def correct(self) -> int:
        """Samples predicted right; of values, 0."""

    @property
    @abstractmethod
    def accuracy(self) -> float:
        """In [0, 1], over all samples; 0 where nothing was tested. One label: the share predicted right. Sets of
        labels: the share whose whole set was (subset accuracy). Values: R2, mean over the outputs, 0 where negative."""

    @property
    @abstractmethod
    def window_accuracy(self) -> float:
        """The same over the last `window` samples, or somewhat more."""

    @abstractmethod
    def summary(self) -> dict[str, Any]:
        """The figures alone, `total` and `window`; names are those of the wire's LearningFigures."""

    @abstractmethod
    def report(self) -> dict[str, Any]:
        """Everything that is known of what was learned; names are those of the wire's LearningReport."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """JSON-able; what reads it is `from_dict` of the same class."""
