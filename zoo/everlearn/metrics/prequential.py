"""Test-then-train: each labelled batch is predicted before it is learned. An evaluation that needs no stored data.

(Gama, Sebastiao & Rodrigues 2013.) Counts only: no sample, no feature, no score. Read it with care: neighbours in a
stream resemble each other, which flatters it.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final, Self

from everlearn.errors import DataLossError, InputError, InvalidError

NO_PREDICTION: Final = ""
"""Stands for the predicted label where there was no head yet; a label is never empty."""
OTHER_LABELS: Final = "\x1f"
"""Stands for the predicted labels of rare confusions that are not kept apart; no label holds a control character."""
OTHER_CLIENTS: Final = ""
"""Stands for the clients that are not kept apart; a client's name is never empty."""
MAX_PAIRS: Final = 5_000
"""Pairs of a true and another predicted label that are kept: 2,000 classes could make 4 million, at every commit."""
MAX_CLIENTS: Final = 1000
"""Clients kept apart: some have a new name at every start."""
_FOLD_TO: Final = 3 * MAX_PAIRS // 4
VERSION: Final = 1


@dataclass(frozen=True, kw_only=True)
class ClientRecord:
    """What one client's samples showed."""

    tested: int
    correct: int

    @property
    def accuracy(self) -> float:
        """0 where nothing was tested."""
        return self.correct / self.tested if self.tested else 0.0


class Prequential:
    """Accuracy so far, over the last `window` samples, per class, and per client.

    A sample of a class that the head does not know yet counts as wrong: that is what a caller would have met.
    The record stays small, however long the stream: beyond MAX_PAIRS the rarest confusions are counted under
    OTHER_LABELS, beyond MAX_CLIENTS those not heard of for longest under OTHER_CLIENTS. All other counts are exact.

    >>> record = Prequential(window=3)
    >>> record.update(["cat", "dog"], None, client="a")  # no head yet
    >>> record.update(["cat", "dog"], ["cat", "cat"], client="b")
    >>> record.tested, record.accuracy, round(record.window_accuracy, 2), record.confusion[("dog", "cat")]
    (4, 0.25, 0.33, 1)
    """

    def __init__(self, window: int = 1000) -> None:
        if window < 1:
            raise InvalidError(f"window is {window}; it must be at least 1 sample", field="window")
        self.window = window
        self._recent: deque[bool] = deque(maxlen=window)
        self._recent_correct = 0
        self._tested = 0
        self._correct = 0
        self._hits: Counter[str] = Counter()
        self._misses: Counter[tuple[str, str]] = Counter()
        self._other_misses: Counter[str] = Counter()
        self._clients: dict[str, tuple[int, int]] = {}
        """(tested, correct), the one heard of last at the end."""

    def update(self, true_labels: Sequence[str], predicted_labels: Sequence[str] | None, client: str = "") -> None:
        """Counts a batch; `predicted_labels` None = there was no head. Raises InputError where lengths differ."""
        if predicted_labels is None:
            predicted_labels = [NO_PREDICTION] * len(true_labels)
        if len(predicted_labels) != len(true_labels):
            raise InputError(
                f"{len(predicted_labels)} predictions for {len(true_labels)} labels; each needs one", field="labels"
            )
        if not true_labels:
            return
        hits = [true == predicted for true, predicted in zip(true_labels, predicted_labels, strict=True)]
        self._count(Counter(zip(true_labels, predicted_labels, strict=True)))
        self._count_client(client, len(hits), sum(hits))
        self._extend(hits)

    def merge(self, other: Prequential) -> None:
        """Adds another record's counts. For the window, the other's samples are the newer ones.

        Raises InvalidError where the windows differ.
        """
        if other.window != self.window:
            raise InvalidError(f"a window of {other.window} samples; this one has {self.window}", field="window")
        self._count(other.confusion)
        for client, (tested, correct) in other._clients.items():
            self._count_client(client, tested, correct)
        self._extend(list(other._recent))

    @property
    def tested(self) -> int:
        """Samples."""
        return self._tested

    @property
    def correct(self) -> int:
        """Samples predicted right."""
        return self._correct

    @property
    def accuracy(self) -> float:
        """Over all samples; 0 where nothing was tested."""
        return self.correct / self.tested if self.tested else 0.0

    @property
    def window_tested(self) -> int:
        """Samples in the window: fewer than `window` at first."""
        return len(self._recent)

    @property
    def window_accuracy(self) -> float:
        """Over the last `window` samples; 0 where nothing was tested."""
        return self._recent_correct / len(self._recent) if self._recent else 0.0

    @property
    def confusion(self) -> Mapping[tuple[str, str], int]:
        """(true label, predicted label) -> samples, of pairs that occurred; rare ones together, see OTHER_LABELS."""
        return {
            **{(label, label): count for label, count in self._hits.items()},
            **self._misses,
            **{(label, OTHER_LABELS): count for label, count in self._other_misses.items()},
        }

    @property
    def clients(self) -> Mapping[str, ClientRecord]:
        """Client -> what its samples showed; some together, see OTHER_CLIENTS."""
        return {
            client: ClientRecord(tested=tested, correct=correct) for client, (tested, correct) in self._clients.items()
        }

    def recall(self) -> Mapping[str, float]:
        """True label -> share of its samples that were predicted right. The least of them is the worst class."""
        tested: Counter[str] = Counter()
        for (true, _), count in self.confusion.items():
            tested[true] += count
        return {label: self._hits[label] / count for label, count in sorted(tested.items())}

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, counts only."""
        return {
            "version": VERSION,
            "window": self.window,
            "recent": "".join("1" if hit else "0" for hit in self._recent),
            "confusion": [[true, predicted, count] for (true, predicted), count in sorted(self.confusion.items())],
            "clients": {client: list(counts) for client, counts in self._clients.items()},
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """What `to_dict` wrote. Raises DataLossError for anything else, or counts that do not add up."""
        try:
            if data["version"] != VERSION:
                raise ValueError(f"version {data['version']}; this release reads version {VERSION}")
            record = cls(window=int(data["window"]))
            pairs = {(str(true), str(guess)): int(count) for true, guess, count in data["confusion"]}
            record._count(pairs)
            for client, (tested, correct) in data["clients"].items():
                record._count_client(str(client), int(tested), int(correct))
            record._extend([{"0": False, "1": True}[hit] for hit in data["recent"]])
        except (KeyError, TypeError, ValueError, AttributeError, InvalidError) as error:
            raise DataLossError(f"not a prequential record: {error!r}") from error
        hits = sum(count for (true, guess), count in pairs.items() if true == guess)
        totals = (sum(pairs.values()), hits)
        if totals != (record.tested, record.correct) or record.window_tested != min(record.tested, record.window):
            raise DataLossError("a prequential record whose counts do not add up")
        return record

    def _count(self, pairs: Mapping[tuple[str, str], int]) -> None:
        for (true, guess), count in pairs.items():
            if true == guess:
                self._hits[true] += count
            elif guess == OTHER_LABELS:
                self._other_misses[true] += count
            else:
                self._misses[true, guess] += count
        if len(self._misses) > MAX_PAIRS:  # a quarter at once, so that it is seldom done
            by_rarity = sorted(self._misses.items(), key=lambda item: (item[1], item[0]))
            for (true, guess), count in by_rarity[: len(by_rarity) - _FOLD_TO]:
                self._other_misses[true] += count
                del self._misses[true, guess]

    def _count_client(self, client: str, tested: int, correct: int) -> None:
        self._tested += tested
        self._correct += correct
        self._add_client(client, tested, correct)
        if len(self._clients) - (OTHER_CLIENTS in self._clients) > MAX_CLIENTS:
            quietest = next(name for name in self._clients if name != OTHER_CLIENTS)
            self._add_client(OTHER_CLIENTS, *self._clients.pop(quietest))

    def _add_client(self, client: str, tested: int, correct: int) -> None:
        tested_before, correct_before = self._clients.pop(client, (0, 0))
        self._clients[client] = (tested_before + tested, correct_before + correct)

    def _extend(self, hits: Sequence[bool]) -> None:
        """Moves the window on."""
        overflow = max(len(self._recent) + len(hits) - self.window, 0)
        self._recent_correct -= sum(islice(self._recent, overflow))
        self._recent.extend(hits)
        # Of a batch longer than the window only its end stays.
        self._recent_correct += sum(hits[-self.window :])
