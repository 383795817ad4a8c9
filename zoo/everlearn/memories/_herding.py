"""Herding on a stream: which rows of a class to let go so that the mean of the rest stays with the class's.

Herding (Welling 2009; iCaRL, Rebuffi et al. 2017, alg. 4) picks exemplars one by one from all samples of a class. On a
stream all are never there at once, so here rows are let go one by one as others arrive.

Axes: C classes, B rows of a batch, m rows of one class, p rows that are looked at, d features.
"""

from __future__ import annotations

from typing import Final, Self

import numpy as np
import numpy.typing as npt

from everlearn.memories._choice import Numbers, priority
from everlearn.values import QuantisedBd

Ints = npt.NDArray[np.int64]
Float = npt.NDArray[np.float64]

POOL_ROWS: Final = 256
"""Most rows of a class that are looked at to find one to let go: its cost does not grow with the capacity."""


class ClassMeans:
    """Mean of all samples of each class, kept or not, as exact sums."""

    def __init__(self, sum_Cd: Float, count_C: Ints) -> None:
        self.sum_Cd = sum_Cd
        self.count_C = count_C

    @classmethod
    def none(cls, dim: int) -> Self:
        """Of no classes yet."""
        return cls(np.zeros((0, dim)), np.zeros(0, np.int64))

    def add(self, quantised_Bd: QuantisedBd, class_B: Numbers, classes: int) -> None:
        """Counts a batch."""
        more = classes - len(self.count_C)
        self.sum_Cd, self.count_C = np.pad(self.sum_Cd, ((0, more), (0, 0))), np.pad(self.count_C, (0, more))
        present_K, member_B = np.unique(class_B, return_inverse=True)
        onehot_KB = (member_B == np.arange(present_K.size)[:, None]).astype(np.float64)
        self.sum_Cd[present_K] += onehot_KB @ quantised_Bd.astype(np.float64)
        self.count_C += np.bincount(class_B, minlength=classes)

    def of_class(self, index: int) -> Float:
        """[d], in grid units."""
        mean_d: Float = self.sum_Cd[index] / max(int(self.count_C[index]), 1)
        return mean_d

    def forget(self, index: int) -> None:
        """Takes a class out."""
        self.sum_Cd[index : index + 1], self.count_C[index : index + 1] = 0.0, 0  # it may never have come


def pool(arrival_m: Ints, fresh: int) -> Ints:
    """Places of the rows to look at: all, or as many at random, other ones each time that `fresh` differs."""
    if len(arrival_m) <= POOL_ROWS:
        return np.arange(len(arrival_m))
    number_m = priority(arrival_m ^ priority(np.array([fresh])).astype(np.int64))
    return np.sort(np.argpartition(number_m, POOL_ROWS)[:POOL_ROWS])


def let_go(rows_pd: Float, total_d: Float, rows: int, mean_d: Float, drop: int) -> Ints:
    """`drop` rows of a pool, without which the mean of the class's others stays closest to `mean_d`, one by one.

    `total_d` is the sum of the class's rows and `rows` their number. All are integers, and so is the vector they are
    compared with: every product and sum is then exact in float64, and the choice does not depend on how BLAS adds.
    """
    # Without row i the mean is (T - x_i) / (m - 1); its distance to mu is least where |x_i + v|^2 is,
    # v = (m - 1) mu - T.
    squares_p = np.einsum("pd,pd->p", rows_pd, rows_pd)
    total_d = total_d.copy()
    gone: list[int] = []
    for left in range(rows - 1, rows - 1 - drop, -1):
        towards_d = np.rint(left * mean_d) - total_d
        distance_p = squares_p + 2 * (rows_pd @ towards_d)
        distance_p[gone] = np.inf
        gone.append(int(distance_p.argmin()))
        total_d -= rows_pd[gone[-1]]
    return np.array(gone, np.int64)
