"""What sums must be to be those of samples."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from everlearn.errors import InvalidError, PreconditionError

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


def check_alike(own: tuple[int, bool], other: tuple[int, bool], verb: str) -> None:
    """Whether two sums, each with its d and whether it is exact, can be added. Raises InvalidError, PreconditionError
    (reason INEXACT_SUMS)."""
    if other[0] != own[0]:
        raise InvalidError(f"sums of {other[0]} features; here there are {own[0]}", field="dim")
    if not (own[1] and other[1]):
        raise PreconditionError(
            f"cannot {verb}: these sums have decayed or were moved to another backbone, and are no longer exact; "
            "only sums without decay (memory.decay: 1) that never moved can be merged or subtracted",
            reason="INEXACT_SUMS",
        )
