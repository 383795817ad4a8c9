"""Labels of samples that were predicted before: how pairs of an id and a label become batches, and what became of each.

Client and AsyncClient drive the same session: `batches`, `learn` them with `hear`, `took` its report, until there are
none. A batch with one sample that does not wait any more is refused as a whole and changes nothing; its pairs are then
sent one by one, so that each hears of itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from everlearn_client.errors import InvalidArgument
from everlearn_client.events import LearnEvent, LearnReport, Rejected
from everlearn_client.samples import Batch, Predicted

TOGETHER = 64
"""Labels in one batch, while none is refused."""
SETS_TOGETHER = 3
"""Sets of labels, of which one may be large: as many as fit one message surely."""
Labelled = tuple[str, Any]
"""The id of a sample (`Predictions.sample_ids`) and what is true of it, as in `Batch.labels`."""


@dataclass(frozen=True)
class LateRefusal:
    """A label that was not learned."""

    sample_id: str
    reason: str
    """`SAMPLE_UNKNOWN` (never given, or before the server's present start), `SAMPLE_EXPIRED`, `SAMPLE_LEARNED` (its
    label came already), `SAMPLE_GONE` (learned, or left for newer ones), or what else a batch is refused for."""
    message: str


@dataclass(frozen=True)
class LabelReport:
    """What became of labels that came late."""

    learned: int
    """Durable."""
    refused: tuple[LateRefusal, ...]
    """In the order in which they were given."""
    version: int
    """The one that knows them, 0 until it is solved."""


class LateSession:
    """One call of `label`."""

    def __init__(self, pairs: Iterable[Labelled]) -> None:
        self._pairs = [_checked(pair, place) for place, pair in enumerate(pairs)]
        plain = all(isinstance(label, str | float | int) for _, label in self._pairs)
        count, size = len(self._pairs), TOGETHER if plain else SETS_TOGETHER
        self._todo = [range(first, min(first + size, count)) for first in range(0, count, size)]
        self._rejected: dict[int, Rejected] = {}
        self._refused: dict[int, LateRefusal] = {}
        self._version = 0

    def batches(self) -> list[Batch]:
        """What to send now; none when all is done."""
        parts = [[self._pairs[place] for place in part] for part in self._todo]
        return [
            Batch(Predicted([sample_id for sample_id, _ in part]), _truth([label for _, label in part]))
            for part in parts
        ]

    def hear(self, event: LearnEvent) -> None:
        """What the stream says of a batch."""
        if isinstance(event, Rejected):
            self._rejected[event.sequence] = event

    def took(self, report: LearnReport) -> None:
        """All of them are durable or refused."""
        self._version = max(self._version, report.version)
        first, again = report.durable_sequence - len(self._todo) + 1, list[range]()
        for sequence, part in enumerate(self._todo, first):
            if (rejected := self._rejected.pop(sequence, None)) is None:
                continue
            if len(part) > 1:
                again += [range(place, place + 1) for place in part]
            else:
                place = part[0]
                self._refused[place] = LateRefusal(self._pairs[place][0], rejected.reason, rejected.message)
        self._todo = again

    def report(self) -> LabelReport:
        """Of all of them."""
        refused = tuple(self._refused[place] for place in sorted(self._refused))
        return LabelReport(len(self._pairs) - len(refused), refused, self._version)


def _checked(pair: Labelled, place: int) -> Labelled:
    if not isinstance(pair, tuple) or len(pair) != 2 or not isinstance(pair[0], str):
        raise InvalidArgument("each must be (sample id, label)", field=f"pairs[{place}]")
    return pair


def _truth(labels: list[Any]) -> Any:
    """As `Batch.labels` takes it."""
    if all(isinstance(label, np.ndarray) for label in labels):
        return np.stack(labels)
    return np.array(labels) if all(isinstance(label, float | int) for label in labels) else labels
