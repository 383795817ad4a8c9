"""A large array that is stored elsewhere too: set down while nobody needs it, taken up by whoever does."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Float = npt.NDArray[np.float64]


class SetDown:
    """Holds an array, or knows how to get it back. Any thread may read; one at a time sets it down."""

    def __init__(self, array: Float) -> None:
        self._array: Float | None = array
        self._recall: Callable[[], Float] | None = None
        self._taking_up = threading.Lock()

    @property
    def array(self) -> Float:
        """The array, taken up if it was set down. Raises what `recall` raises; it stays down then."""
        array = self._array
        return array if array is not None else self._taken_up()

    @property
    def held_bytes(self) -> int:
        """Bytes in RAM."""
        return self._array.nbytes if self._array is not None else 0

    def set_down(self, recall: Callable[[], Float]) -> int:
        """Lets go of it, and gives the bytes that this frees. `recall` is called by whoever needs it first."""
        with self._taking_up:
            freed = self.held_bytes
            if freed:
                self._array, self._recall = None, recall
        return freed

    def _taken_up(self) -> Float:
        with self._taking_up:
            if self._array is None:  # another thread may have been quicker
                assert self._recall is not None, "it was set down"
                self._array, self._recall = self._recall(), None
            return self._array
