"""Numbers as unsigned integers, their differences, and the differences' bytes in planes.

    difference = new - predicted (modulo 2^bits), zigzag: 0, -1, 1, -2, ... -> 0, 1, 2, 3, ...
    plane p    = byte p of every difference

Predicted is the number in the base. A float32's bits are compared as an integer: near numbers have near bits. The
planes are ordered by the base's exponents, which a receiver has already: an update changes small and large weights by
about as much, so the number of bits that change depends on the exponent, and like comes to lie beside like.

Axes: N items; p bytes of an item.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Items = npt.NDArray[np.unsignedinteger]
Planes = npt.NDArray[np.uint8]


def uint(size: int) -> np.dtype[np.unsignedinteger]:
    """Little-endian, of `size` bytes."""
    return np.dtype(f"<u{size}")


def to_planes(differences_N: Items) -> Planes:
    """[p, N], lowest byte first."""
    return np.ascontiguousarray(differences_N).view(np.uint8).reshape(len(differences_N), -1).T


def from_planes(planes_pN: Planes) -> Items:
    """What `to_planes` was given."""
    return np.ascontiguousarray(planes_pN.T).view(uint(len(planes_pN))).reshape(-1)


class Prediction:
    """What the numbers of a segment would be if nothing had changed; both sides make the same one."""

    def __init__(self, olds_N: Items | None, *, order: int = 0, columns: int = 0) -> None:
        """As the fields of `Segment`. `olds_N`: the base's, None: zeros."""
        self._olds_N = None if olds_N is None else np.ascontiguousarray(olds_N)
        self._columns = columns
        self._order_N = self._ordered(order) if self._olds_N is not None and order else None

    def differences(self, news_N: Items) -> Items:
        """In the planes' order."""
        predicted_N = self._olds_N
        if predicted_N is not None and self._columns:
            predicted_N = predicted_N.copy()
            predicted_N[self._columns - 1 :: self._columns] = _minus_sum(news_N, self._columns)
        apart_N = _zigzag(np.ascontiguousarray(news_N) if predicted_N is None else news_N - predicted_N)
        return apart_N if self._order_N is None else apart_N[self._order_N]

    def news(self, differences_N: Items) -> Items:
        """The inverse."""
        apart_N = differences_N
        if self._order_N is not None:
            apart_N = np.empty_like(differences_N)
            apart_N[self._order_N] = differences_N
        apart_N = _unzigzag(apart_N)
        if self._olds_N is None:
            return apart_N
        news_N = apart_N + self._olds_N
        if self._columns:
            last = slice(self._columns - 1, None, self._columns)
            news_N[last] = apart_N[last] + _minus_sum(news_N, self._columns)
        return news_N

    def _ordered(self, order: int) -> npt.NDArray[np.intp]:
        assert self._olds_N is not None
        bits = 8 * self._olds_N.dtype.itemsize
        key_N = ((self._olds_N << 1) >> (bits - order)).astype(np.uint16)
        if self._columns:
            # Differences to a sum are of another kind, and come last.
            key_N[self._columns - 1 :: self._columns] = 2**order
        return np.argsort(key_N, kind="stable")


def _minus_sum(items_N: Items, columns: int) -> Items:
    """Of each row minus the sum of all but the last, as float32's bits. One addition after the other in float64: the
    same bits on every machine, where a library's sum may choose an order of its own."""
    rows = items_N.view("<f4").reshape(-1, columns)
    total = np.zeros(len(rows), np.float64)
    # The last number of a row may be anything yet; the others may be infinite, or none.
    with np.errstate(over="ignore", invalid="ignore"):
        for column in range(columns - 1):
            total -= rows[:, column]
        return total.astype("<f4").view("<u4")


def _zigzag(items_N: Items) -> Items:
    signs_N: Items = np.negative(items_N >> (8 * items_N.dtype.itemsize - 1))
    zigzag_N: Items = np.bitwise_xor(items_N << 1, signs_N)
    return zigzag_N


def _unzigzag(items_N: Items) -> Items:
    signs_N: Items = np.negative(items_N & 1)
    back_N: Items = np.bitwise_xor(items_N >> 1, signs_N)
    return back_N
