"""Which weights are served: the last ones, their running mean, or a soup of snapshots; decided by prequential tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.func import functional_call

from everlearn.learners.gradient.averages import SNAPSHOT_EVERY, Ema, Soup, Weights
from everlearn.learners.gradient.network import Network
from everlearn.spec.recipe import Training


class Served:
    """The weights that callers get, as a recipe declares them."""

    def __init__(self, network: Network, train: Training) -> None:
        self.ema = Ema(train.ema)
        self.soup = Soup(train.soup)
        self._network = network

    def moved(self, step: int) -> None:
        """After each step; `step` counts from 1."""
        if self.ema.decay:
            self.ema.update(self._live())
        if self.soup.capacity and step % SNAPSHOT_EVERY == 0:
            self.soup.add(self.base())

    def base(self) -> Weights:
        """The running mean where one is kept, else the last weights: what a soup is made of and held against."""
        live = self._live()
        if not self.ema.weights:
            return live
        return {name: self._as_long(self.ema.weights.get(name), value) for name, value in live.items()}

    def weights(self) -> Weights:
        """Of every moving parameter, by name."""
        base = self.base()
        return self.soup.weights if self.soup.is_served and self.soup.covers(base) else base

    @torch.no_grad()  # type: ignore[untyped-decorator]  # torch's types are skipped, see pyproject
    def test(self, inputs_Bn: torch.Tensor, merit: Callable[[torch.Tensor], torch.Tensor]) -> float:
        """What the base weights are worth on rows before they are learned; the soup is held against that.

        `merit`: of logits [B, C], a scalar summed over rows, the more the better.
        """
        base = self.base()
        chosen = [base, self.soup.weights] if self.soup.covers(base) else [base]
        merits = [merit(functional_call(self._network, weights, (inputs_Bn,))) for weights in chosen]
        found, *cooked = torch.stack(merits).tolist()
        if cooked:
            self.soup.compare(cooked[0], found, len(inputs_Bn))
        return float(found)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Live, for a checkpoint."""
        found = {f"ema.{name}": value for name, value in self.ema.weights.items()}
        for position, snapshot in enumerate(self.soup.snapshots):
            found |= {f"soup.{position}.{name}": value for name, value in snapshot.items()}
        return found

    def numbers(self) -> dict[str, Any]:
        """JSON-able, for a checkpoint."""
        hits = dict(self.soup.hits)
        return {"ema_updates": self.ema.updates, "snapshots": len(self.soup.snapshots), "soup_hits": hits}

    def restore(self, ema: Weights, soup: Weights, numbers: Mapping[str, Any]) -> None:
        """What `tensors` (by their prefixes) and `numbers` gave; what the recipe no longer declares is left out."""
        moving = {name for name, _ in self._network.moving()}
        if self.ema.decay:
            self.ema.weights = {name: value for name, value in ema.items() if name in moving}
            self.ema.updates = int(numbers["ema_updates"])
        if self.soup.capacity:
            snapshots: list[Weights] = [{} for _ in range(int(numbers["snapshots"]))]
            for full_name, value in soup.items():
                position, _, name = full_name.partition(".")
                snapshots[int(position)][name] = value
            # Of what moves now; those of other blocks are of another time.
            snapshots = [snapshot for snapshot in snapshots if snapshot.keys() == moving]
            self.soup.snapshots = snapshots[-self.soup.capacity :]
            self.soup.hits = {key: float(value) for key, value in numbers["soup_hits"].items()}
            self.soup.refresh()

    @staticmethod
    def _as_long(mean: torch.Tensor | None, live: torch.Tensor) -> torch.Tensor:
        if mean is None:
            return live
        # A class that was only just added, and not yet learned, has its row in the live weights alone.
        return mean if mean.shape == live.shape else torch.cat([mean, live[len(mean) :]])

    def _live(self) -> Weights:
        return {name: parameter.detach() for name, parameter in self._network.moving()}
