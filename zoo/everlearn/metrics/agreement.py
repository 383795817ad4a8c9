"""What a new head would cost where an old one serves, told by unlabelled samples that both have scored.

The old head's probabilities p (softmax at its temperature, fitted to labelled samples before, see `temperature.py`) say
how sure it is. If they are right, a sample on which the new head decides otherwise costs, on average,

    drop = p(old decision) - p(new decision)          0 where both decide alike

of accuracy: little where the old head wavered, nearly 1 where it was sure. It leaves out what the new head may know
better, so it errs on the safe side; beside it stand the share of equal decisions, and an upper bound of the mean drop.
Axes: B samples, C classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from everlearn.errors import InputError
from everlearn.metrics.probabilities import margins

SURE: Final = 1.6449
"""Standard errors of a one-sided bound that holds in 95 of 100 cases."""


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Of one pair of heads on one set of samples."""

    samples: int
    share: float
    """Decided alike."""
    drop: float
    """Expected loss of accuracy, 0 to 1."""
    drop_bound: float
    """Not exceeded by the expected loss in 95 of 100 draws of the samples (normal approximation, with one more
    disagreement than there was, so that few samples never bound it by 0)."""


def agreement(old_BC: npt.NDArray[np.float32], new_BC: npt.NDArray[np.float32], temperature: float | None) -> Agreement:
    """Of the scores of both heads over the same classes. `temperature` None: nobody knows how sure the old head is, so
    each different decision counts as a whole loss. Raises InputError where shapes differ or there is no sample.

    >>> old, new = np.array([[1, 0], [0, 1], [0.6, 0.4], [0, 1]], np.float32), np.array([[0, 1]] * 4, np.float32)
    >>> found = agreement(old, new, temperature=0.1)
    >>> found.share, round(found.drop, 2), agreement(old, new, temperature=None).drop
    (0.5, 0.44, 0.5)
    """
    if old_BC.shape != new_BC.shape or old_BC.ndim != 2 or not old_BC.size:
        raise InputError(f"scores of shapes {old_BC.shape} and {new_BC.shape}; they must be equal", field="scores")
    row_B, old_B, new_B = np.arange(len(old_BC)), old_BC.argmax(axis=1), new_BC.argmax(axis=1)
    differs_B = old_B != new_B
    drop_B = differs_B.astype(np.float64)
    if temperature is not None:
        weight_BC = np.exp(margins(old_BC) / temperature)
        chance_BC = weight_BC / weight_BC.sum(axis=1, keepdims=True)
        drop_B = chance_BC[row_B, old_B] - chance_BC[row_B, new_B]
    count = len(drop_B)
    one_more_B = np.append(drop_B, 1.0)
    bound = float(one_more_B.mean()) + SURE * float(one_more_B.std()) / math.sqrt(count + 1)
    return Agreement(
        samples=count,
        share=float(1 - differs_B.mean()),
        drop=float(drop_B.mean()),
        drop_bound=min(bound, 1.0),
    )
