"""What a linear head's scores say as probabilities.

Heads are linear: their scores are not probabilities, and their scale is that of the head (ridge: about 0 to 1;
cosine: -1 to 1; a discriminant: hundreds). What is called a probability here is always

    p_c = softmax(scores / T)_c

with the temperature T that `temperature.py` fits from the stream itself. Axes: B samples, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

LOWEST: Final = -(2.0**15)
"""Margins below are clipped, or one absurd sample would outweigh all others in every sum for ever."""


@dataclass(frozen=True, kw_only=True)
class Announced:
    """What a head announced about a batch, at one temperature, before it learned the batch."""

    confidence_B: npt.NDArray[np.float64]
    """Probability of the class it predicted: the largest."""
    log_odds_BC: npt.NDArray[np.float32]
    """ln(p / (1 - p)) of each class: infinite where there is no other class, or none with a chance."""


def announce(scores_BC: npt.NDArray[np.float32], temperature: float) -> Announced:
    """Probabilities of finite scores, C >= 1.

    >>> told = announce(np.array([[0.0, np.log(3)]], np.float32), temperature=1.0)
    >>> told.confidence_B.round(2).tolist(), np.exp(told.log_odds_BC).round(1).astype(float).tolist()
    ([0.75], [[0.30000001192092896, 3.0]])
    """
    below_BC = margins(scores_BC).astype(np.float32) * np.float32(1 / temperature)
    weight_BC = np.exp(below_BC)
    total_B1 = weight_BC.sum(axis=1, keepdims=True)
    with np.errstate(divide="ignore"):
        log_odds_BC = below_BC - np.log(np.maximum(total_B1 - weight_BC, 0))
    return Announced(confidence_B=1 / total_B1[:, 0].astype(np.float64), log_odds_BC=log_odds_BC)


def margins(scores_BC: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Each score less the row's largest, so <= 0, and at least LOWEST; scores must be finite."""
    scores64_BC = scores_BC.astype(np.float64)
    below_BC: npt.NDArray[np.float64] = np.maximum(scores64_BC - scores64_BC.max(axis=1, keepdims=True), LOWEST)
    return below_BC
