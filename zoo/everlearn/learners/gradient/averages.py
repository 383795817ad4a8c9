"""Weights that are served instead of the last ones: a running mean, and a soup of snapshots. Both grow with the head.

Weights are mappings from a parameter's name to its value; rows of a head are only ever appended.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import torch

Weights = dict[str, torch.Tensor]

SNAPSHOT_EVERY: Final = 25
"""Steps between the snapshots of a soup."""
WINDOW_ROWS: Final = 1000
"""Rows over which a soup and the weights it is made of are compared."""
LEAST_ROWS: Final = 100
"""Rows compared before a soup may serve."""


class Ema:
    """Running mean of weights, with the warm-up of the decay that lets it forget where training began:
    min(decay, (1 + t) / (10 + t)), Polyak & Juditsky 1992 in the form of TensorFlow's ExponentialMovingAverage."""

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.weights: Weights = {}
        self.updates = 0

    @torch.no_grad()  # type: ignore[untyped-decorator]  # torch's types are skipped, see pyproject
    def update(self, live: Mapping[str, torch.Tensor]) -> None:
        """Moves towards the live weights; new rows begin as they are."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        for name, value in live.items():
            mean = self.weights.get(name)
            if mean is None:
                mean = self.weights[name] = value.clone()
            elif mean.shape != value.shape:
                mean = self.weights[name] = torch.cat([mean, value[len(mean) :]])
            mean.lerp_(value, 1 - decay)


class Soup:
    """Mean of the last snapshots (Wortsman et al. 2022), served while it is not worse than what it is made of.

    Which is better is known from rows before they are learned (prequential), so no data is held back. A class that
    came after a snapshot takes its row from the later ones.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.snapshots: list[Weights] = []
        self.weights: Weights = {}
        """The mean."""
        self.hits = {"soup": 0.0, "live": 0.0, "rows": 0.0}
        """Prequential counts in a window that fades."""

    @property
    def is_served(self) -> bool:
        """Whether it has proved not to be worse."""
        return self.hits["rows"] >= LEAST_ROWS and self.hits["soup"] >= self.hits["live"]

    def compare(self, soup: float, live: float, rows: int) -> None:
        """What each was worth on these rows before they were learned: rows predicted right, or errors below zero."""
        fade = max(1 - rows / WINDOW_ROWS, 0.0)
        for key, more in (("soup", soup), ("live", live), ("rows", rows)):
            self.hits[key] = fade * self.hits[key] + more

    @torch.no_grad()  # type: ignore[untyped-decorator]  # torch's types are skipped, see pyproject
    def add(self, live: Mapping[str, torch.Tensor]) -> None:
        """Takes a snapshot; the oldest goes where there are too many."""
        self.snapshots = [*self.snapshots, {name: value.clone() for name, value in live.items()}][-self.capacity :]
        self.refresh()

    def refresh(self) -> None:
        """The mean of the snapshots there are."""
        last = self.snapshots[-1] if self.snapshots else {}
        self.weights = {name: _mean([snapshot[name] for snapshot in self.snapshots]) for name in last}

    def covers(self, live: Mapping[str, torch.Tensor]) -> bool:
        """Whether it knows every class of the live weights."""
        return bool(self.weights) and all(self.weights[name].shape == value.shape for name, value in live.items())


def _mean(values: Iterable[torch.Tensor]) -> torch.Tensor:
    """Of each row over the values that have it; the last has all."""
    *older, last = values
    total, count = last.clone(), torch.ones(len(last), device=last.device) if last.ndim else torch.ones(())
    for value in older:
        if last.ndim:
            total[: len(value)] += value
            count[: len(value)] += 1
        else:
            total, count = total + value, count + 1
    # A number on the host is given to the GPU with the division; to send it there by itself would wait.
    return total / count.reshape(-1, *[1] * (last.ndim - 1)) if last.ndim else total / count
