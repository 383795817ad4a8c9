"""How far a covariance that few samples made is to be drawn towards a sphere."""

from __future__ import annotations


def oas_shrinkage(trace: float, trace_of_square: float, dim: int, samples: float) -> float:
    """Oracle approximating shrinkage of a covariance V of `samples` degrees of freedom (Chen et al. 2010, eq. 23).

    (scikit-learn leaves out the terms 2/d, which matter below some ten features.)

    >>> oas_shrinkage(2.0, 2.0, 2, 10)  # already a sphere
    1.0
    """
    numerator = (1 - 2 / dim) * trace_of_square + trace**2
    denominator = (samples + 1 - 2 / dim) * (trace_of_square - trace**2 / dim)
    return min(1.0, numerator / denominator) if denominator > 0 else 1.0
