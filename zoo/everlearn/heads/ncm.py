"""Nearest class mean by cosine: no matrix, no choice to make, works from the first sample on."""

from __future__ import annotations

from typing import Literal

import numpy as np

from everlearn.errors import SpecError
from everlearn.heads._classes import Moments
from everlearn.heads.base import Head
from everlearn.sums import Sums
from everlearn.values import FeatureScale, LinearHead


class Ncm(Head):
    """Score = cosine between a sample and the class's mean (Rebuffi et al. 2017's classifier; SimpleCIL)."""

    def __init__(self, *, regularization: Literal["auto"] | float = "auto") -> None:
        super().__init__(regularization=regularization)
        if regularization != "auto":
            raise SpecError("ncm has nothing to regularize; leave it 'auto'", field="spec.head.regularization")

    def solve(self, sums: Sums, scale: FeatureScale, *, hint: float | None = None) -> LinearHead:
        """See Head; nothing to search, so `hint` is unused."""
        moments = Moments.of(sums, scale)
        length_K1 = np.linalg.norm(moments.mean_Kd, axis=1, keepdims=True)
        # A mean of length zero has no direction: its score is 0 for all samples.
        weight_Kd = np.divide(moments.mean_Kd, length_K1, out=np.zeros_like(moments.mean_Kd), where=length_K1 > 0)
        return moments.linear(weight_Kd.T, 0.0, regularization=0.0, normalise=True)
