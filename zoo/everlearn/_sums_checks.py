"""What sums must be to be those of samples."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from everlearn.errors import InvalidError

Float = npt.NDArray[np.float64]
Count = npt.NDArray[np.int64] | Float


def check_remainder(count_C: Count, sum_Cd: Float, diagonal_d: Float) -> None:
    """Necessary conditions on what is left of exact sums: counts [C], feature sums [C, d] and G's diagonal [d] must be
    able to exist. Raises InvalidError."""
    if (count_C < 0).any():
        raise InvalidError("cannot subtract: a class would have fewer than no samples", field="counts")
    if sum_Cd[count_C == 0].any():
        raise InvalidError("cannot subtract: a class without samples would have a sum", field="sums")
    # Scatter within classes, G_jj - sum_c S_cj^2 / n_c, cannot be negative; the slack is float64's rounding.
    between_d = np.einsum("cd,cd,c->d", sum_Cd, sum_Cd, 1.0 / np.maximum(count_C, 1))
    if (diagonal_d < between_d * (1 - 1e-9)).any() or (not count_C.any() and diagonal_d.any()):
        raise InvalidError("cannot subtract: the remaining sums belong to no set of samples", field="gram")
