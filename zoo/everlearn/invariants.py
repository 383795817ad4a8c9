"""What must hold of sums that came of samples: bytes with a right digest can still be those of a bug.

Exact sums of integer features x, |x| <= limit, over n samples of which n_c are of class c:

    0 <= n_c;  S_c = 0 where n_c = 0;  |S_c| <= n_c limit;  0 <= diag G <= n limit^2
    diag G = sum_c S_c (mod 2), because x^2 = x (mod 2)
    G - sum_c S_c S_c^T / n_c is positive semidefinite: the scatter within classes (Duda & Hart, ch. 3.8)

G is kept as one triangle, so that it is symmetric by its format. Axes: C classes, K targets, d features.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from everlearn.sums import Sums
from everlearn.target_sums import TargetSums

Float = npt.NDArray[np.float64]

_ROUNDING: Final = 2.0**-44
"""Of a scatter's eigenvalues, relative to d times the largest: the products by 1/n_c round, the sums do not."""
_INEXACT: Final = 1e-9
"""The same of sums that decayed or were estimated."""


def of_sums(sums: Sums, *, limit: int | None = None) -> list[str]:
    """What sums break, in words; empty for sums of samples. `limit`: largest integer feature, where it is known."""
    if not sums.is_exact:
        return _of_inexact(sums)
    count_C, sum_Cd, diagonal_d = sums.count_C, sums.sum_Cd, sums.gram_lower_dd.diagonal()
    broken = []
    if (count_C < 0).any():
        return ["a class has a negative number of samples"]
    if sum_Cd[count_C == 0].any():
        broken.append(f"class {sums.labels[_first(count_C == 0, sum_Cd)]!r} has no samples and yet a feature sum")
    if (diagonal_d < 0).any():
        broken.append(f"G[{int(np.flatnonzero(diagonal_d < 0)[0])}] is negative on the diagonal")
    if limit is not None:
        if (np.abs(sum_Cd) > count_C[:, None] * float(limit)).any():
            broken.append(f"a feature sum is larger than its samples allow: features are at most {limit}")
        if (diagonal_d > sums.samples * float(limit) ** 2).any():
            broken.append(f"G is larger than {sums.samples} samples allow: features are at most {limit}")
    odd_d = (diagonal_d - sum_Cd.sum(axis=0)) % 2 != 0
    if odd_d.any():
        broken.append(f"S and G disagree in parity at feature {int(np.flatnonzero(odd_d)[0])}: not sums of integers")
    return broken or _scatter(sums)


def of_targets(sums: TargetSums, *, limit: int | None = None) -> list[str]:
    """What sums with targets break, as `of_sums`."""
    broken = of_sums(sums.shared, limit=limit)
    sum_K, square_K, n = sums.sum_K, sums.square_K, sums.samples
    if sums.task == "multilabel" and ((sum_K < 0).any() or (sum_K > n).any() or (sum_K != square_K).any()):
        broken.append(f"a label is counted for more than the {n} samples, or not alike in both of its sums")
    if ((sum_K - square_K) % 2 != 0).any():
        broken.append("a target's sum and sum of squares disagree in parity: not sums of integers")
    if (square_K < 0).any() or (sum_K.astype(np.float64) ** 2 > square_K * float(n) * (1 + _INEXACT)).any():
        broken.append(f"a target's sum is larger than its squares over {n} samples allow")
    diagonal_d = sums.gram_lower_dd.diagonal()
    if (sums.cross_Kd**2 > np.outer(square_K, np.maximum(diagonal_d, 0)) * (1 + _INEXACT)).any():
        broken.append("a target and a feature go together more than either goes with itself")
    return broken


def _of_inexact(sums: Sums) -> list[str]:
    parts = sums.count_C, sums.sum_Cd, sums.gram_lower_dd
    if not all(np.isfinite(part).all() for part in parts):
        return ["a number is infinite, or none"]
    if (sums.count_C < 0).any():
        return ["a class has a negative number of samples"]
    return _below_zero(sums.gram_dd, _INEXACT, "G")


def _scatter(sums: Sums) -> list[str]:
    learned_C = sums.count_C > 0
    mean_Cd = sums.sum_Cd[learned_C] / sums.count_C[learned_C][:, None]
    within_dd = sums.gram_dd  # a copy: 2 GB at d = 16,384, so nothing is copied again
    within_dd -= mean_Cd.T @ sums.sum_Cd[learned_C]
    scale = float(sums.gram_lower_dd.diagonal().max(initial=0.0))
    return _below_zero(within_dd, _ROUNDING, "G less the classes' means", scale)


def _below_zero(matrix_dd: Float, tolerance: float, name: str, scale: float | None = None) -> list[str]:
    """By Cholesky, d^3 / 3; the eigenvalue itself only where that fails. Changes the matrix."""
    largest = float(np.abs(matrix_dd.diagonal()).max(initial=0.0)) if scale is None else scale
    slack = tolerance * len(matrix_dd) * max(largest, 1.0)
    matrix_dd.flat[:: len(matrix_dd) + 1] += slack
    try:
        np.linalg.cholesky(matrix_dd)
    except np.linalg.LinAlgError:
        least = float(np.linalg.eigvalsh(matrix_dd)[0]) - slack
        if least >= -slack:
            return []
        return [f"{name} is not positive semidefinite: its least eigenvalue is {least:.3g}, below -{slack:.1g}"]
    return []


def _first(empty_C: npt.NDArray[np.bool_], sum_Cd: Float) -> int:
    return int(np.flatnonzero(empty_C & sum_Cd.any(axis=1))[0])
