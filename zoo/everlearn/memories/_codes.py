"""Feature vectors in one or two bytes a number, each feature on a scale of its own.

Axes: N rows, d features.
"""

from __future__ import annotations

from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from everlearn.values import QuantisedBd

Precision = Literal["int8", "fp16"]
CodesNd = npt.NDArray[Any]

INT8: Final = 127
"""Largest magnitude of a code."""
CODE_BITS: Final = 7
"""Of a code's magnitude."""
LARGEST_HALF: Final = 32752
"""Largest half-precision number within int16."""


class Codec:
    """Quantised features <-> what is stored.

    int8: feature = code * 2^shift_d, the least shift at which the feature's largest row so far has a code, so an error
    is at most half of 2^shift_d (a whole one at the very end of the range). Shifts only grow, one row at a time as
    they come, and codes kept so far are rounded anew: a power of two keeps that error below 2^shift_d for good.
    fp16: the integer as a half, which is exact up to 2,048, so for the default 12 bits.

    >>> codec = Codec("int8", 2)
    >>> codec.encode(np.array([[100, 1001]], np.int16)).tolist(), codec.shift_d.tolist()
    ([[100, 125]], [0, 3])
    """

    def __init__(self, precision: Precision, dim: int, shift_d: npt.NDArray[np.uint8] | None = None) -> None:
        self.precision: Final = precision
        self.shift_d = np.zeros(dim, np.uint8) if shift_d is None else shift_d

    @property
    def dtype(self) -> type[np.int8] | type[np.float16]:
        """Of a code."""
        return np.int8 if self.precision == "int8" else np.float16

    def widen(self, rows_Nd: QuantisedBd, kept_Nd: CodesNd) -> None:
        """Makes room for the range of new rows; `kept_Nd`, what is stored so far, is rounded to it in place."""
        if self.precision == "fp16" or not len(rows_Nd):
            return
        largest_d = np.minimum(np.abs(rows_Nd.astype(np.int32)).max(axis=0), np.iinfo(np.int16).max)
        bits_d = np.frexp(largest_d.astype(np.float32))[1]
        wider_d = np.maximum(self.shift_d, np.maximum(bits_d - CODE_BITS, 0)).astype(np.uint8)
        grown = np.flatnonzero(wider_d > self.shift_d)
        if grown.size and len(kept_Nd):
            factor_d = np.exp2(-(wider_d - self.shift_d)[grown].astype(np.float32))
            kept_Nd[:, grown] = np.rint(kept_Nd[:, grown] * factor_d).astype(np.int8)
        self.shift_d = wider_d

    def encode(self, rows_Nd: QuantisedBd) -> CodesNd:
        """Codes of rows, after `widen`, or alone where nothing is stored yet."""
        if self.precision == "fp16":
            return np.clip(rows_Nd, -LARGEST_HALF, LARGEST_HALF).astype(np.float16)
        self.widen(rows_Nd, rows_Nd[:0])
        codes_Nd = np.rint(rows_Nd * np.exp2(-self.shift_d.astype(np.float32)))
        return np.clip(codes_Nd, -INT8, INT8).astype(np.int8)

    def decode(self, codes_Nd: CodesNd) -> QuantisedBd:
        """The integers that codes stand for."""
        if self.precision == "fp16":
            return codes_Nd.astype(np.int16)
        return codes_Nd.astype(np.int16) << self.shift_d.astype(np.int16)
