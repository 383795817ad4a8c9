"""What learns beside a model from pixels on their way: a student, or the ranges of a graph in 8 bits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from everlearn.errors import NotFoundError
from everlearn.truth import Truth
from everlearn.values import FeaturesBd, TrunkInput
from everlearn_server.engine.serving import Snapshot
from everlearn_server.engine.trunks import LiveTrunk
from everlearn_server.store.store import Store


@dataclass(eq=False)
class Captured:
    """Pixels of a batch on its way through the trunk. Weakly counted: whoever drops it makes room."""

    pixels: list[TrunkInput | None]
    is_open: bool = True

    def keeping(self, pixels_of: Callable[[int], TrunkInput]) -> Callable[[int], TrunkInput]:
        """The same, and what it makes of the first samples stays here."""

        def keep(index: int) -> TrunkInput:
            pixels = pixels_of(index)
            if index < len(self.pixels) and self.is_open:
                self.pixels[index] = pixels
            return pixels

        return keep

    def take(self) -> list[TrunkInput | None]:
        """Empties it, and makes room."""
        pixels, self.pixels, self.is_open = self.pixels, [], False
        return pixels


class Beside(Protocol):
    """Event loop only; never holds the stream up, and nothing of it is part of `durable`."""

    @property
    def trunk(self) -> LiveTrunk | None:
        """One of its own, to be released with it."""
        ...

    def room(self, samples: int) -> Captured | None:
        """What a batch's pixels are to be kept in; None where there is no time for it."""
        ...

    def offer(
        self, captured: Captured | None, features_Bd: FeaturesBd, labels: Truth, snapshot: Snapshot | None
    ) -> None:
        """A batch that the model has learned; `snapshot`: the version that is latest then."""
        ...

    async def stop(self, *, save: bool = True) -> None:
        """Ends after what it is at; what waits is dropped."""
        ...


async def forget(store: Store, key: str) -> None:
    """Deletes what was kept of it, if there is something."""
    try:
        await store.catalog.delete_trunk(key)
    except NotFoundError:
        return
