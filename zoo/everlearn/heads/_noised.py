"""Ridge from sums with noise: the same equations as `everlearn.heads._ridge`, with what is known of the noise.

Noise on G is symmetric with standard deviation s off the diagonal: its largest eigenvalue is about 2 s sqrt(d), by
Wigner's semicircle. So eigenvalues below 0 are noise and become 0, and the penalty is at least that length (as AdaSSP
adds it, Wang 2018, without spending budget on the smallest eigenvalue); above it generalised cross-validation chooses.
Pure functions of what was released: solving spends nothing.

Axes: K = C classes, d features.
"""

from __future__ import annotations

import math
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from everlearn.errors import PreconditionError, SpecError
from everlearn.heads._ridge import FLOOR, checked_alpha, search
from everlearn.privacy.mechanism import SHARES
from everlearn.privacy.noised_sums import NoisedSums
from everlearn.values import LinearHead

Float = npt.NDArray[np.float64]
BALANCE: Final = {"ridge": 0.0, "balanced_ridge": 1.0}
"""Heads that are solved from sums with noise -> p: class c weighs n_c^(1 - p)."""


def solve_noised(sums: NoisedSums, kind: str, regularization: Literal["auto"] | float = "auto") -> LinearHead:
    """The head, of features scaled to length 1.

    Raises PreconditionError (reason EMPTY_MEMORY) where nothing was released, SpecError for another kind.
    """
    if kind not in BALANCE:
        raise SpecError(f"{kind} knows nothing of noise; write ridge or balanced_ridge", field="spec.head.kind")
    if not sums.releases:
        raise PreconditionError("no sample has been learned; stream some first", reason="EMPTY_MEMORY")
    alpha = checked_alpha(regularization)
    length, step_d = sums.mechanism.length, sums.mechanism.scale.step_d.astype(np.float64)
    relative_d = step_d / length
    multiplier, classes, dim = math.sqrt(sums.variance), len(sums.labels), len(step_d)
    count_K = np.maximum(sums.count_C, max(1.0, multiplier / math.sqrt(SHARES[0])))
    mean_Kd = sums.sum_Cd * relative_d / count_K[:, None]
    weight_K = count_K ** (1.0 - BALANCE[kind])
    weight_K *= classes / weight_K.sum()
    centre_d = weight_K @ mean_Kd / classes
    centred_Kd = mean_Kd - centre_d
    per_sample = classes / count_K.sum()
    gram_dd = (sums.lower_dd + np.tril(sums.lower_dd, -1).T) * np.outer(relative_d, relative_d)
    moment_dd = per_sample * (gram_dd - (mean_Kd.T * count_K) @ mean_Kd) + (centred_Kd.T * weight_K) @ centred_Kd
    clipped_dd = _positive(moment_dd)
    size = float(np.trace(clipped_dd)) / dim
    noise = per_sample * multiplier / math.sqrt(SHARES[2]) * math.sqrt(2 * dim)
    spread = float(np.sum(weight_K - weight_K**2 / classes))
    kish = classes**2 / float(np.sum(weight_K**2 / count_K))
    chosen, weight_dK, _ = search(
        np.asfortranarray(clipped_dd),
        np.asfortranarray((weight_K[:, None] * centred_Kd).T),
        size=max(size, FLOOR),
        floor=max(noise, FLOOR * max(size, 1.0)),
        spread=spread,
        samples=math.sqrt(kish * float(count_K.sum())),
        **({} if alpha is None else {"alphas": (alpha,)}),
    )
    return LinearHead(
        weight_dC=weight_dK.astype(np.float32),
        bias_C=(weight_K / classes - centre_d @ weight_dK).astype(np.float32),
        normalise=True,
        labels=sums.labels,
        regularization=max(chosen, noise / max(size, FLOOR)),
    )


def _positive(matrix_dd: Float) -> Float:
    """The nearest matrix without negative eigenvalues."""
    values_d, vectors_dd = np.linalg.eigh(matrix_dd)
    clipped_dd: Float = (vectors_dd * np.maximum(values_d, 0.0)) @ vectors_dd.T
    return clipped_dd
