"""What a record of test-then-train is, whatever a sample's truth is: the part that learning and serving rely on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import numpy.typing as npt

from everlearn.truth import Truth
from everlearn.values import FeaturesBd


class Record(ABC):
    """Counts and sums only: no sample, no feature, no score. Threads may test, read and serialise it at once."""

    window: int
    """Samples over which the windowed figures reach."""

    @abstractmethod
    def test(
        self,
        truth: Truth,
        client: str,
        *,
        scores_BC: npt.NDArray[np.float32] | None,
        known: tuple[str, ...],
        features_Bd: FeaturesBd,
    ) -> None:
        """Counts a batch that was predicted before it is learned; `scores_BC` None = there was no head.

        `known`: label or output of each column. Raises InputError where lengths differ; then nothing is counted.
        """

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
