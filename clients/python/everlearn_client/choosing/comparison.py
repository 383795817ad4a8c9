"""Whether one of two that answered the same N samples is better, or only luckier (McNemar 1947)."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

Correct = npt.NDArray[np.bool_]
"""Whether each of N samples was predicted right."""

_CHANCE = 1 - NormalDist().cdf(2.0)
"""Of a difference of two standard errors where there is none."""


def difference(better_N: Correct, other_N: Correct) -> tuple[float, float]:
    """How much more accurate the first is on the same samples, and the standard error of that; at least one sample's
    worth, because a few samples on which they agree prove nothing.

    Only samples count on which exactly one is right.

    >>> difference(np.array([1, 1, 1, 0], bool), np.array([1, 0, 0, 0], bool))
    (0.5, 0.25)
    """
    count = len(better_N)
    gained = int(np.count_nonzero(better_N & ~other_N))
    lost = int(np.count_nonzero(other_N & ~better_N))
    variance = max(gained + lost - (gained - lost) ** 2 / count, 1.0)
    return (gained - lost) / count, math.sqrt(variance) / count


def noise_errors(comparisons: int) -> float:
    """Standard errors that the best of so many must be ahead by to count: 2 for one, more for more, because the best of
    many is also the luckiest (Sidak 1967).

    >>> [round(noise_errors(count), 2) for count in (1, 5, 20)]
    [2.0, 2.61, 3.05]
    """
    return NormalDist().inv_cdf((1 - _CHANCE) ** (1 / max(comparisons, 1)))


def is_noise(better_N: Correct, other_N: Correct, *, comparisons: int) -> bool:
    """Whether the first is ahead by no more than luck explains."""
    ahead, error = difference(better_N, other_N)
    return ahead <= noise_errors(comparisons) * error


def points(share: float) -> str:
    """A difference of accuracies, for people.

    >>> points(0.034)
    '3.4 points'
    """
    return f"{100 * share:.1f} points"
