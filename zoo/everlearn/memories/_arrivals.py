"""What a choice of rows remembers of all that came: how many of each class, from whom, and until when."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Clients = npt.NDArray[np.int32]

_SPARE_NAMES = 1024
"""Client names without rows that may wait until they are dropped."""


@dataclass(kw_only=True)
class Arrivals:
    """Counters that go into the state, so that a batch meets the same random numbers when it comes again."""

    seen_C: Ints
    """Samples of each class."""
    count: int = 0
    """Rows so far, kept or not: the place of the next one in the sequence of random numbers."""
    latest_s: float = 0.0
    """Latest time that a batch had, seconds since the epoch."""
    number_of: dict[str, int] = field(default_factory=dict)
    """Client -> its number in the rows."""

    def see(self, class_B: npt.NDArray[np.intp], classes: int) -> Ints:
        """Counts a batch; returns the number of arrival of each row."""
        self.make_room(classes)
        self.seen_C += np.bincount(class_B, minlength=classes)
        first, self.count = self.count, self.count + len(class_B)
        return np.arange(first, self.count)

    def make_room(self, classes: int) -> None:
        """For classes that came."""
        self.seen_C = np.pad(self.seen_C, (0, classes - len(self.seen_C)))

    def client(self, name: str) -> int:
        """The number of a client."""
        return self.number_of.setdefault(name, len(self.number_of))

    def drop_names(self, client_N: Clients) -> Clients:
        """Drops the names of clients without rows once there are many, and numbers the others anew."""
        if len(self.number_of) < 2 * len(client_N) + _SPARE_NAMES:
            return client_N
        names, renumbered_N = self.named(client_N)
        self.number_of = {name: number for number, name in enumerate(names)}
        return renumbered_N

    def named(self, client_N: Clients) -> tuple[list[str], Clients]:
        """Sorted names of the clients that have rows, and each row's number among those: nothing of who came first."""
        names, present = list(self.number_of), np.unique(client_N).tolist()
        by_name = sorted(present, key=names.__getitem__)
        renumbered = np.zeros(len(names), np.int32)
        renumbered[by_name] = np.arange(len(by_name))
        return [names[number] for number in by_name], renumbered[client_N]
