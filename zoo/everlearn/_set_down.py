"""Large arrays that are stored elsewhere too: set down while nobody needs them, taken up by whoever does."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Float = npt.NDArray[np.float64]


Arrays = tuple[Float, ...]


class SetDown:
    """Holds arrays, or knows how to get them back. Any thread may read; one at a time sets them down."""

    def __init__(self, *arrays: Float) -> None:
        self._arrays: Arrays | None = arrays
        self._recall: Callable[[], Arrays] | None = None
        self._taking_up = threading.Lock()

    @property
    def arrays(self) -> Arrays:
        """The arrays, taken up if they were set down. Raises what `recall` raises; they stay down then."""
        arrays = self._arrays
        return arrays if arrays is not None else self._taken_up()

    @property
    def held_bytes(self) -> int:
        """Bytes in RAM."""
        return sum(array.nbytes for array in self._arrays or ())

    def set_down(self, recall: Callable[[], Arrays]) -> int:
        """Lets go of them, and gives the bytes that this frees. `recall` is called by whoever needs them first."""
        with self._taking_up:
            freed = self.held_bytes
            if freed:
                self._arrays, self._recall = None, recall
        return freed

    def _taken_up(self) -> Arrays:
        with self._taking_up:
            if self._arrays is None:  # another thread may have been quicker
                assert self._recall is not None, "they were set down"
                self._arrays, self._recall = self._recall(), None
            return self._arrays


def fingerprint(array: Float) -> bytes:
    """sha256 of its numbers, to know it again."""
    return hashlib.sha256(np.ascontiguousarray(array).data).digest()
