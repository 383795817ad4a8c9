"""How far activations reach, learned while the stream flows, so that an int8 graph needs no stored sample.

Of each image and each tensor only the two extremes are counted, each in a bin of magnitudes an eighth of an octave
wide: exact integers that add up, in any order, to the same sketch. No image's own extremes are kept.

Axes: B images, T tensors, K bins.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from everlearn.errors import DataLossError, InputError

BINS_AN_OCTAVE: Final = 8
LOWEST, HIGHEST = -20, 20
"""Octaves: magnitudes below 2^-20 count as none, above 2^20 as that."""
BINS: Final = 1 + (HIGHEST - LOWEST) * BINS_AN_OCTAVE
"""K; the first is for no magnitude at all."""
OUTLIERS: Final = 0.002
"""Share of the images that may reach further than the range: of fewer than 500, none."""
Extremes = npt.NDArray[np.float32]
"""[B, T, 2]: smallest and largest value of each tensor in each image."""


class RangeSketch:
    """Counts of extremes for the tensors of one graph."""

    def __init__(self, tensors: Sequence[str]) -> None:
        self.tensors = tuple(tensors)
        self.samples = 0
        """Images."""
        self._counts_T2K = np.zeros((len(self.tensors), 2, BINS), np.int64)

    def add(self, extremes_BT2: Extremes) -> None:
        """Counts images. Raises InputError for other tensors than its own, and numbers that are none."""
        if extremes_BT2.shape[1:] != (len(self.tensors), 2) or not np.isfinite(extremes_BT2).all():
            raise InputError("not the finite extremes of this graph's tensors", field="extremes")
        # A range has to contain 0, which is exact in it: below and above are magnitudes of their own.
        reach_BT2 = np.maximum(extremes_BT2 * np.array([-1, 1], np.float32), 0)
        self.add_bins(_bin(reach_BT2))

    def add_bins(self, bin_BT2: npt.NDArray[np.integer]) -> None:
        """Counts images whose bins are known already (`int8_trunk.observing`). Raises InputError for other tensors
        than its own, and for what is no bin."""
        if bin_BT2.shape[1:] != (len(self.tensors), 2) or bin_BT2.min(initial=0) < 0 or bin_BT2.max(initial=0) >= BINS:
            raise InputError("not the bins of this graph's tensors", field="extremes")
        np.add.at(self._counts_T2K, (*np.indices(bin_BT2.shape)[1:], bin_BT2), 1)
        self.samples += len(bin_BT2)

    def ranges(self) -> dict[str, tuple[float, float]]:
        """Lowest and highest value of each tensor, but for outliers. Raises InputError where nothing was seen."""
        if not self.samples:
            raise InputError("no image has been seen", field="ranges")
        beyond_T2K = self.samples - np.cumsum(self._counts_T2K, axis=2)
        edge_T2 = _edge((beyond_T2K <= OUTLIERS * self.samples).argmax(axis=2))
        pairs = zip(self.tensors, edge_T2, strict=True)
        # A tensor that is always 0 still needs a scale.
        return {name: (-float(low), float(high) if low or high else 1.0) for name, (low, high) in pairs}

    def to_bytes(self) -> bytes:
        """Equal for equal sketches."""
        told = {"tensors": self.tensors, "samples": self.samples}
        head = json.dumps(told).encode()
        return len(head).to_bytes(4, "little") + head + zlib.compress(self._counts_T2K.astype("<i8").tobytes(), 9)

    @classmethod
    def from_bytes(cls, data: bytes) -> RangeSketch:
        """What `to_bytes` gave. Raises DataLossError."""
        try:
            size = int.from_bytes(data[:4], "little")
            told: dict[str, Any] = json.loads(data[4 : 4 + size])
            sketch = cls([str(name) for name in told["tensors"]])
            counts_K = np.frombuffer(zlib.decompress(data[4 + size :]), "<i8")
            sketch._counts_T2K = counts_K.reshape(sketch._counts_T2K.shape).astype(np.int64)
            sketch.samples = int(told["samples"])
        except (ValueError, KeyError, TypeError, zlib.error) as error:
            raise DataLossError(f"this is no sketch of ranges: {error}") from error
        if (sketch._counts_T2K.sum(axis=2) != sketch.samples).any() or sketch._counts_T2K.min(initial=0) < 0:
            raise DataLossError("this sketch of ranges does not add up")
        return sketch


def _bin(reach: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    with np.errstate(divide="ignore"):
        octave = np.log2(reach, dtype=np.float64)
    steps = np.ceil((np.clip(octave, LOWEST, HIGHEST) - LOWEST) * BINS_AN_OCTAVE)
    return np.asarray(steps, np.int64)


def _edge(index: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """The upper end of a bin."""
    return np.where(index == 0, 0.0, 2.0 ** (LOWEST + index / BINS_AN_OCTAVE))
