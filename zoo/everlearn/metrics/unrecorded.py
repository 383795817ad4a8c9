"""The record of a model whose tests are not to be told: under differential privacy each count would be a release."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from everlearn.metrics.prequential import Prequential
from everlearn.values import FeaturesBd


class Unrecorded(Prequential):
    """Counts nothing, ever: neither accuracy, confusion, calibration, drift nor clients.

    Exact counts of what samples showed say what was in them; with noise of their own they would cost budget that
    learning needs. So there are none, and nobody (a gate, a report, a client's answer) may go by them.

    >>> record = Unrecorded()
    >>> record.update(["cat"], ["cat"])
    >>> record.tested
    0
    """

    is_kept = False

    def update(
        self,
        true_labels: Sequence[str],
        predicted_labels: Sequence[str] | None,
        client: str = "",
        *,
        scores_BC: npt.NDArray[np.float32] | None = None,
        known: tuple[str, ...] = (),
        features_Bd: FeaturesBd | None = None,
        step: str = "",
    ) -> None:
        """Leaves everything as it is."""
