"""What may stand between a batch and its effect: asked in the batch's turn, by the single writer."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from everlearn.errors import EverlearnError
from everlearn.values import FeaturesBd
from everlearn_server.engine.batches import Derived


class Guard(Protocol):
    """Judges batches in the order in which they take effect; one worker thread at a time.

    What it says is final: the sequence of a refused batch is spent. So it goes by what is committed with the batches
    (counts, records), never by a clock, and a replay after a crash judges the same.
    """

    def refusal(self, batch: Derived, scores_BC: npt.NDArray[np.float32] | None) -> EverlearnError | None:
        """Why the batch is to have no effect; None where it may. `scores_BC`: what the live head makes of it."""

    def admitted(self, batch: Derived, features_Bd: FeaturesBd) -> FeaturesBd:
        """The features that are learned: these, or shortened ones. Asked of batches that were not refused, and again of
        one that comes twice, for its receipt: it counts nothing."""

    def took(self, batch: Derived) -> None:
        """The batch has had its effect: here is where a guard counts."""
