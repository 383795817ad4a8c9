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
        self.told: dict[str, Any] | None = None
        """What `to_dict` gave, of a pane that is full: it is asked for with every commit."""

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
        self.samples = 0
        """That it covers."""

    @property
    def present(self) -> Pane:
        """Where the next batch is counted; call `take` before and `turn` afterwards."""
        return self._panes[-1]

    def take(self, samples: int) -> None:
        """So many more are in the present pane."""
        self.present.samples += samples
        self.samples += samples

    @property
    def is_full(self) -> bool:
        """Whether the present pane is."""
        return self.present.samples >= max(self.size // PANES, 1)

    def turn(self) -> None:
        """Begins a new pane when the present one is full; drops the oldest while the others suffice."""
        if self.is_full:
            self._panes.append(Pane())
        while self.samples - self._panes[0].samples >= self.size:
            self.samples -= self._panes.popleft().samples

    def extend(self, other: Window) -> None:
        """Adds another's panes, as the newer ones."""
        # Copies: the other's present pane goes on being counted.
        self._panes.extend(Pane.from_dict(pane.to_dict()) for pane in other._panes)
        self.samples += other.samples
        self.turn()

    def rename_client(self, client: str, name: str) -> None:
        """Counts its samples under another name."""
        for pane in self._panes:
            pane.told = None
            for of, true, guess in [cell for cell in pane.cells if cell[0] == client]:
                pane.cells[name, true, guess] += pane.cells.pop((of, true, guess))

    def forget_features(self) -> None:
        """Drops what was summed of features."""
        for pane in self._panes:
            pane.told, pane.moments = None, FeatureMoments()

    def temperature(self) -> float | None:
        """Fitted to the window; None while it holds too few scores."""
        return LossByTemperature.of([pane.scores.losses for pane in self._panes]).fit()

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
        for pane in self._panes:
            if pane.told is None and pane is not self.present:
                pane.told = pane.to_dict()
        return [pane.told or pane.to_dict() for pane in self._panes]

    @classmethod
    def from_list(cls, size: int, data: list[Mapping[str, Any]]) -> Self:
        """What `to_list` wrote. Raises KeyError, IndexError, TypeError or ValueError for anything else."""
        made = cls(size)
        made._panes = deque(Pane.from_dict(pane) for pane in data)
        if not made._panes:
            raise ValueError("a window without a pane")
        made.samples = sum(pane.samples for pane in made._panes)
        return made
