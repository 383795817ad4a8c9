"""The last samples of a stream as counts: a row of panes, of which the oldest goes when it is no longer needed.

(Panes: Li et al. 2005, "No pane, no gain", SIGMOD Record 34.) A window by samples would have to keep something of each
sample, to take it out again. Panes keep sums of about size / 8 samples; the price is that the window covers from `size`
to `size` + a pane and a batch.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from typing import Any, Final, Self

from everlearn.metrics.confusion import Confusion
from everlearn.metrics.drift import FeatureMoments
from everlearn.metrics.scores import ScoreCounts
from everlearn.metrics.temperature import LossByTemperature

PANES: Final = 8


class Pane:
    """What is counted of some samples that came one after the other."""

    def __init__(self) -> None:
        self.samples = 0
        self.cells: Counter[tuple[str, str, str]] = Counter()
        """(client, true label, predicted label) -> samples."""
        self.scores = ScoreCounts(max_classes=0)
        self.moments = FeatureMoments()

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; each name once, for labels are up to 256 bytes."""
        cells = sorted(self.cells.items())
        clients = sorted({client for (client, _, _), _ in cells})
        labels = sorted({label for (_, true, guess), _ in cells for label in (true, guess)})
        client_index = {client: index for index, client in enumerate(clients)}
        label_index = {label: index for index, label in enumerate(labels)}
        return {
            "clients": clients,
            "labels": labels,
            "cells": [[client_index[c], label_index[t], label_index[g], n] for (c, t, g), n in cells],
            "scores": self.scores.to_dict(),
            "moments": self.moments.to_dict(),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """What `to_dict` wrote. Raises KeyError, IndexError, TypeError or ValueError for anything else."""
        made = cls()
        clients, labels = [str(c) for c in data["clients"]], [str(label) for label in data["labels"]]
        for client, true, guess, count in data["cells"]:
            if int(count) < 1:
                raise ValueError("a cell without samples")
            made.cells[clients[client], labels[true], labels[guess]] += int(count)
        made.samples = made.cells.total()
        made.scores = ScoreCounts.from_dict(data["scores"], max_classes=0)
        made.moments = FeatureMoments.from_dict(data["moments"])
        return made


class Window:
    """The last `size` samples, or somewhat more (see above); fewer at first."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._panes: deque[Pane] = deque([Pane()])

    @property
    def present(self) -> Pane:
        """Where the next batch is counted; call `turn` afterwards."""
        return self._panes[-1]

    def turn(self) -> None:
        """Begins a new pane when the present one is full; drops the oldest while the others suffice."""
        if self.present.samples >= max(self.size // PANES, 1):
            self._panes.append(Pane())
        while self.samples - self._panes[0].samples >= self.size:
            self._panes.popleft()

    def extend(self, other: Window) -> None:
        """Adds another's panes, as the newer ones."""
        # Copies: the other's present pane goes on being counted.
        self._panes.extend(Pane.from_dict(pane.to_dict()) for pane in other._panes)
        self.turn()

    def forget_features(self) -> None:
        """Drops what was summed of features."""
        for pane in self._panes:
            pane.moments = FeatureMoments()

    @property
    def samples(self) -> int:
        """That it covers."""
        return sum(pane.samples for pane in self._panes)

    def temperature(self) -> float | None:
        """Fitted to the window; None while it holds too few scores."""
        losses = LossByTemperature()
        for pane in self._panes:
            losses.merge(pane.scores.losses)
        return losses.fit()

    def confusion(self) -> Confusion:
        """Which class was taken for which."""
        cells: Counter[tuple[str, str]] = Counter()
        for pane in self._panes:
            for (_, true, guess), count in pane.cells.items():
                cells[true, guess] += count
        confusion = Confusion()
        confusion.add(cells)
        return confusion

    def scores(self) -> ScoreCounts:
        """What was counted of scores; AUC pooled only."""
        scores = ScoreCounts(max_classes=0)
        for pane in self._panes:
            scores.merge(pane.scores)
        return scores

    def moments(self) -> FeatureMoments:
        """What was summed of features."""
        moments = FeatureMoments()
        for pane in self._panes:
            moments.merge(pane.moments)
        return moments

    def clients(self) -> dict[str, tuple[Counter[str], int]]:
        """Client -> (its label counts, how many of its samples were right)."""
        found: dict[str, tuple[Counter[str], int]] = {}
        for pane in self._panes:
            for (client, true, guess), count in pane.cells.items():
                mix, hits = found.get(client, (Counter(), 0))
                mix[true] += count
                found[client] = (mix, hits + count * (true == guess))
        return found

    def to_list(self) -> list[dict[str, Any]]:
        """JSON-able; its size is bounded by `size`, whatever the number of classes and clients."""
        return [pane.to_dict() for pane in self._panes]

    @classmethod
    def from_list(cls, size: int, data: list[Mapping[str, Any]]) -> Self:
        """What `to_list` wrote. Raises KeyError, IndexError, TypeError or ValueError for anything else."""
        made = cls(size)
        made._panes = deque(Pane.from_dict(pane) for pane in data)
        if not made._panes:
            raise ValueError("a window without a pane")
        return made
