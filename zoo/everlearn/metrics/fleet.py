"""What each client's batches showed lately, label by label: what tells a client that is wrong from one that is unlike.
Where the model tells novelty, also how unlike all that was learned they were: a camera that was moved, or is dirty.

Counts only. Old ones fade: a client's are halved whenever there are twice `WINDOW` of them, so one that sends fifty
times as much weighs no more than others. Axes: B samples, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt

from everlearn.errors import DataLossError

WINDOW: Final = 200
"""Samples of one client over which its recent figures reach; up to twice as many."""
MAX_CLIENTS: Final = 1000
"""Clients kept apart; who was not heard of for longest is forgotten, and unknown when it comes again."""
MAX_LABELS: Final = 200
"""Labels counted for one client."""
MOST_NOVEL: Final = 10.0
"""A sample counts for so much at most, or one that is nothing at all would be all that a mean tells of."""
VERSION: Final = 1


@dataclass(kw_only=True)
class ClientTally:
    """Of one client, since it was first heard of."""

    clipped: int = 0
    """Samples that were shortened to the longest vector allowed."""
    rejected: int = 0
    """Batches."""
    brought: int = 0
    """Labels that nobody had declared or sent before, while that was limited."""
    labels: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Label -> (tested, correct), lately, of labels that the head knew."""
    watched: int = 0
    """Samples whose novelty was told, lately."""
    unknown: int = 0
    """Of those, beyond 1."""
    novelty: float = 0.0
    """Sum over them, each up to MOST_NOVEL."""

    @property
    def tested(self) -> int:
        """Lately."""
        return sum(tested for tested, _ in self.labels.values())

    @property
    def correct(self) -> int:
        """Lately."""
        return sum(correct for _, correct in self.labels.values())

    def fade(self) -> None:
        """Halves what was tested, label by label."""
        halved = {label: (tested // 2, correct // 2) for label, (tested, correct) in self.labels.items()}
        self.labels = {label: counts for label, counts in halved.items() if counts[0]}


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A client beside the others, on the labels that both have shown."""

    tested: int
    """Samples of the client that can be compared; 0 where none can."""
    accuracy: float
    expected: float
    """What the others' accuracies on the same labels come to for this client's mixture of them."""


class FleetTally:
    """Every client's recent tests. One thread at a time.

    >>> fleet = FleetTally()
    >>> fleet.count("a", ["cat", "dog"], np.array([[2.0, 1.0], [0.0, 1.0]], np.float32), ("cat", "dog"))
    >>> fleet.count("b", ["dog", "cat"], np.array([[2.0, 1.0], [0.0, 1.0]], np.float32), ("cat", "dog"))
    >>> fleet.compare("b", least=1)
    Comparison(tested=2, accuracy=0.0, expected=1.0)
    """

    def __init__(self) -> None:
        self._clients: dict[str, ClientTally] = {}
        """The one heard of last at the end."""
        self._labels: dict[str, tuple[int, int]] = {}
        """Sums over the clients."""
        self._columns: tuple[Sequence[str], dict[str, int]] = ((), {})

    def __getitem__(self, client: str) -> ClientTally:
        return self._clients.get(client) or ClientTally()

    def count(
        self, client: str, truth: Sequence[str], scores_BC: npt.NDArray[np.float32] | None, known: Sequence[str]
    ) -> None:
        """Counts a test before learning; samples of labels that the head did not know tell nothing."""
        tally = self._heard(client)
        if scores_BC is None:
            return
        if self._columns[0] is not known:  # the same object for every batch that one head tests
            self._columns = known, {label: column for column, label in enumerate(known)}
        column_of = self._columns[1]
        for label, winner in zip(truth, scores_BC.argmax(axis=1).tolist(), strict=True):
            column = column_of.get(label)
            if column is None or (label not in tally.labels and len(tally.labels) >= MAX_LABELS):
                continue
            hit = column == winner
            for counts in (tally.labels, self._labels):
                tested, correct = counts.get(label, (0, 0))
                counts[label] = tested + 1, correct + hit
        if tally.tested >= 2 * WINDOW:
            self._take(tally, -1)
            while tally.tested >= 2 * WINDOW:
                tally.fade()
            self._take(tally, 1)

    def watch(self, client: str, novelty_B: npt.NDArray[np.float32]) -> None:
        """Counts how unlike all that was learned its samples were, before they were learned."""
        tally, limit = self._heard(client), np.float32(MOST_NOVEL)
        tally.watched += len(novelty_B)
        tally.unknown += len(novelty_B) - int(np.count_nonzero(novelty_B <= 1))
        tally.novelty += float(np.where(novelty_B <= limit, novelty_B, limit).sum())
        while tally.watched >= 2 * WINDOW:
            tally.watched, tally.unknown, tally.novelty = tally.watched // 2, tally.unknown // 2, tally.novelty / 2

    def note(self, client: str, *, clipped: int = 0, rejected: int = 0, brought: int = 0) -> None:
        """Samples that were shortened, batches that were refused, labels that were new."""
        tally = self._heard(client)
        tally.clipped += clipped
        tally.rejected += rejected
        tally.brought += brought

    def compare(self, client: str, *, least: int) -> Comparison:
        """A client's recent accuracy beside the others' on its labels; of labels of which the others showed fewer than
        `least` samples nothing is known."""
        tested = correct = 0
        expected = 0.0
        for label, (own_tested, own_correct) in self[client].labels.items():
            all_tested, all_correct = self._labels[label]
            others = all_tested - own_tested
            if others >= least:
                tested += own_tested
                correct += own_correct
                expected += own_tested * (all_correct - own_correct) / others
        if not tested:
            return Comparison(tested=0, accuracy=0.0, expected=0.0)
        return Comparison(tested=tested, accuracy=correct / tested, expected=expected / tested)

    def forget(self, client: str) -> None:
        """Nothing is known of it any more."""
        tally = self._clients.pop(client, None)
        if tally is not None:
            self._take(tally, -1)

    def forget_labels(self) -> None:
        """What was tested is forgotten; how much was refused and shortened is not."""
        for tally in self._clients.values():
            tally.labels = {}
            tally.watched, tally.unknown, tally.novelty = 0, 0, 0.0
        self._labels = {}

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "version": VERSION,
            "clients": {
                client: {
                    "clipped": tally.clipped,
                    "rejected": tally.rejected,
                    "brought": tally.brought,
                    "labels": {label: list(counts) for label, counts in tally.labels.items()},
                    **({"novelty": [tally.watched, tally.unknown, tally.novelty]} if tally.watched else {}),
                }
                for client, tally in self._clients.items()
            },
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any] | None) -> Self:
        """What `to_dict` wrote; empty for None, which earlier releases wrote. Raises DataLossError."""
        fleet = cls()
        if data is None:
            return fleet
        try:
            if data["version"] != VERSION:
                raise ValueError(f"version {data['version']}; this release reads version {VERSION}")
            for client, told in data["clients"].items():
                counts = {label: (int(tested), int(correct)) for label, (tested, correct) in told["labels"].items()}
                if any(not 0 <= correct <= tested for tested, correct in counts.values()):
                    raise ValueError(f"more correct than tested for client {client!r}")
                plain = {name: int(told[name]) for name in ("clipped", "rejected", "brought")}
                watched, unknown, novelty = told.get("novelty", (0, 0, 0.0))  # earlier releases told none
                if not 0 <= int(unknown) <= int(watched):
                    raise ValueError(f"more unknown than watched for client {client!r}")
                tally = ClientTally(
                    **plain, labels=counts, watched=int(watched), unknown=int(unknown), novelty=float(novelty)
                )
                fleet._clients[str(client)] = tally
                fleet._take(tally, 1)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataLossError(f"not a record of clients: {error!r}") from error
        return fleet

    def _heard(self, client: str) -> ClientTally:
        tally = self._clients.pop(client, None) or ClientTally()
        self._clients[client] = tally
        if len(self._clients) > MAX_CLIENTS:
            self.forget(next(iter(self._clients)))
        return tally

    def _take(self, tally: ClientTally, sign: int) -> None:
        for label, (tested, correct) in tally.labels.items():
            all_tested, all_correct = self._labels.get(label, (0, 0))
            self._labels[label] = (all_tested + sign * tested, all_correct + sign * correct)
            if self._labels[label] == (0, 0):
                del self._labels[label]
