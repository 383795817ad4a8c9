"""What is counted of the scores a head gave before it learned: calibration, temperature, AUC, log-loss.

Axes: B samples, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from everlearn.metrics.auc import MAX_CLASSES, ScoreHistograms
from everlearn.metrics.calibration import Reliability
from everlearn.metrics.probabilities import announce
from everlearn.metrics.temperature import LossByTemperature


@dataclass(frozen=True, kw_only=True)
class ScoredBatch:
    """A batch's scores, all finite, with what was true; lives as long as the update."""

    scores_BC: npt.NDArray[np.float32]
    labels: tuple[str, ...]
    """Of each column."""
    true_B: npt.NDArray[np.intp]
    """Column of the true class; -1 where the head does not know it."""
    hit_B: npt.NDArray[np.bool_]


class ScoreCounts:
    """Everything counted of the scores of some set of samples. Samples whose true class the head did not know count as
    wrong in the calibration (a caller would have met them so), and are left out of losses, which would be infinite.
    """

    def __init__(self, max_classes: int = MAX_CLASSES) -> None:
        """`max_classes`: with an AUC of their own."""
        self.losses = LossByTemperature()
        self.reliability = Reliability()
        self.histograms = ScoreHistograms(max_classes)
        self.loss_samples = 0
        self.loss_nats = 0.0
        """Sum of -ln p of the true class, as announced."""

    @property
    def log_loss(self) -> float | None:
        """Mean -ln p of the true class as it was announced, in nats; None where nothing was announced."""
        return self.loss_nats / self.loss_samples if self.loss_samples else None

    def merge(self, other: ScoreCounts) -> None:
        """Adds another's counts."""
        self.losses.merge(other.losses)
        self.reliability.merge(other.reliability)
        self.histograms.merge(other.histograms)
        self.loss_samples += other.loss_samples
        self.loss_nats += other.loss_nats

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, of bounded size."""
        return {
            "losses": self.losses.to_dict(),
            "reliability": self.reliability.to_dict(),
            "histograms": self.histograms.to_dict(),
            "loss": [self.loss_samples, self.loss_nats],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], max_classes: int = MAX_CLASSES) -> Self:
        """What `to_dict` wrote. Raises KeyError, TypeError or ValueError for anything else."""
        made = cls(max_classes)
        made.losses = LossByTemperature.from_dict(data["losses"])
        made.reliability = Reliability.from_dict(data["reliability"])
        made.histograms = ScoreHistograms.from_dict(data["histograms"], max_classes)
        made.loss_samples, made.loss_nats = int(data["loss"][0]), float(data["loss"][1])
        return made


def count(batch: ScoredBatch, temperature: float | None, total: ScoreCounts, recent: ScoreCounts) -> None:
    """Counts a batch in two records at once.

    `temperature`: the one fitted before this batch. None: not known yet, so nothing was announced; the batch then only
    helps to find it.
    """
    known_B = np.flatnonzero(batch.true_B >= 0)
    losses = LossByTemperature()
    losses.add(batch.scores_BC[known_B], batch.true_B[known_B])
    total.losses.merge(losses)
    recent.losses.merge(losses)
    if temperature is None or not len(batch.scores_BC):
        return
    announced = announce(batch.scores_BC, temperature)
    recent.histograms.add_pooled(total.histograms.add(announced.log_odds_BC, batch.true_B, batch.labels))
    loss_nats = float(np.logaddexp(0, -announced.log_odds_BC[known_B, batch.true_B[known_B]]).sum(dtype=np.float64))
    for record in (total, recent):
        record.reliability.add(announced.confidence_B, batch.hit_B)
        record.loss_samples += len(known_B)
        record.loss_nats += loss_nats
