"""Which class was taken for which: sparse counts of (true, predicted) pairs, and what per-class figures follow.

Definitions are scikit-learn's (`precision_recall_fscore_support`, zero_division=0); hits = samples of a class that were
predicted right:

    recall    = hits / samples of the class
    precision = hits / times the class was predicted
    F1        = 2 hits / (samples + times predicted)                       (van Rijsbergen 1979, Information Retrieval)
    macro     = plain mean over classes; of recall over those that occurred (balanced accuracy, Brodersen et al. 2010),
                of precision and F1 over those that occurred or were predicted (as scikit-learn does)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

NO_PREDICTION: Final = ""
"""Stands for the predicted label where there was no head yet; a label is never empty."""
OTHER_LABELS: Final = "\x1f"
"""Stands for labels that are not kept apart; no label holds a control character."""
MISSED: Final = "\x1e"
"""Stands for the predicted label where neither it nor the true one is kept apart, and they differ."""
MAX_PAIRS: Final = 5_000
"""Pairs of a true and another predicted label that are kept: 2,000 classes could make 4 million, at every commit."""
MAX_CLASSES: Final = 10_000
"""Classes kept apart, the first that came; the rest are one class, OTHER_LABELS."""
_FOLD_TO: Final = 3 * MAX_PAIRS // 4


@dataclass(frozen=True, kw_only=True)
class ClassFigures:
    """How one class fared."""

    label: str
    samples: int
    predicted: int
    """Times it was predicted."""
    hits: int

    @property
    def recall(self) -> float:
        """0 where it did not occur."""
        return self.hits / self.samples if self.samples else 0.0

    @property
    def precision(self) -> float:
        """0 where it was never predicted."""
        return self.hits / self.predicted if self.predicted else 0.0

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall; 0 where either is."""
        return 2 * self.hits / (self.samples + self.predicted) if self.hits else 0.0


@dataclass(frozen=True, kw_only=True)
class Macro:
    """Means over classes, every class alike however rare."""

    recall: float
    precision: float
    f1: float
    worst: ClassFigures | None
    """Of the classes that occurred, the one of least recall (then precision); None where nothing was tested."""


class Confusion:
    """Exact per class; beyond MAX_PAIRS the rarest confusions are counted under OTHER_LABELS, row by row.

    >>> confusion = Confusion()
    >>> confusion.add({("cat", "cat"): 3, ("cat", "dog"): 1, ("dog", "dog"): 2})
    >>> [(each.label, each.precision, each.recall) for each in confusion.classes()]
    [('cat', 1.0, 0.75), ('dog', 0.6666666666666666, 1.0)]
    """

    def __init__(self) -> None:
        self._labels = {OTHER_LABELS}
        self._samples: Counter[str] = Counter()
        self._predicted: Counter[str] = Counter()
        self._hits: Counter[str] = Counter()
        self._misses: Counter[tuple[str, str]] = Counter()
        self._other_misses: Counter[str] = Counter()
        self.unattributed = 0
        """Wrong predictions whose label is not known any more (a record of an earlier release): precision is then at
        most what is reported."""

    def add(self, pairs: Mapping[tuple[str, str], int]) -> None:
        """Counts (true label, predicted label) -> samples."""
        for (true, guess), count in pairs.items():
            self._count(true, guess, count)
        self._fold()

    def merge(self, other: Confusion) -> None:
        """Adds another's counts; what it has folded stays folded."""
        predicted, unattributed = self._predicted.copy(), self.unattributed
        self.add(other.cells)
        # Not from its cells: they no longer say what its rare confusions were.
        self._predicted, self.unattributed = predicted, unattributed + other.unattributed
        for label, count in other._predicted.items():
            self._predicted[self._kept(label)] += count

    @property
    def cells(self) -> dict[tuple[str, str], int]:
        """(true label, predicted label) -> samples, of pairs that occurred; rare ones together, see OTHER_LABELS."""
        return {
            **{(label, label): count for label, count in self._hits.items()},
            **self._misses,
            **{
                (label, OTHER_LABELS if label != OTHER_LABELS else MISSED): count
                for label, count in self._other_misses.items()
            },
        }

    @property
    def samples(self) -> int:
        """Of all classes."""
        return self._samples.total()

    @property
    def hits(self) -> int:
        """Of all classes."""
        return self._hits.total()

    @property
    def predicted(self) -> Mapping[str, int]:
        """Label -> times it was predicted."""
        return self._predicted

    def classes(self) -> list[ClassFigures]:
        """Every class that occurred or was predicted, by label."""
        return [self._figures(label) for label in sorted(self._samples.keys() | self._predicted.keys())]

    def macro(self) -> Macro:
        """Means over classes; all 0 where nothing was tested."""
        labels = sorted(self._samples.keys() | self._predicted.keys())
        samples_C = np.array([self._samples[label] for label in labels], np.int64)
        predicted_C = np.array([self._predicted[label] for label in labels], np.int64)
        hits_C = np.array([self._hits[label] for label in labels], np.int64)
        occurred = np.flatnonzero(samples_C)
        if not occurred.size:
            return Macro(recall=0.0, precision=0.0, f1=0.0, worst=None)
        recall_C = hits_C / np.maximum(samples_C, 1)
        precision_C = hits_C / np.maximum(predicted_C, 1)
        worst = occurred[np.lexsort((precision_C[occurred], recall_C[occurred]))[0]]
        return Macro(
            recall=float(recall_C[occurred].mean()),
            precision=float(precision_C.mean()),
            f1=float((2 * hits_C / (samples_C + predicted_C)).mean()),
            worst=self._figures(labels[worst]),
        )

    def recall(self) -> dict[str, float]:
        """True label -> share of its samples that were predicted right."""
        return {label: self._hits[label] / count for label, count in sorted(self._samples.items())}

    def largest(self, count: int) -> list[tuple[str, str, int]]:
        """The most frequent confusions (true, predicted, samples), without those that are not kept apart."""
        misses = [(true, guess, n) for (true, guess), n in self._misses.items()]
        return sorted(misses, key=lambda cell: (-cell[2], cell[0], cell[1]))[:count]

    @property
    def misses(self) -> int:
        """Samples predicted wrong, or not at all."""
        return self.samples - self.hits

    def take_predicted(self, counts: Iterable[tuple[str, int]], unattributed: int) -> None:
        """Sets how often each label was predicted, where cells that were read back no longer say it."""
        self._predicted = Counter(dict(counts))
        self._labels |= self._predicted.keys()
        self.unattributed = unattributed

    def _figures(self, label: str) -> ClassFigures:
        return ClassFigures(
            label=label, samples=self._samples[label], predicted=self._predicted[label], hits=self._hits[label]
        )

    def _count(self, true: str, guess: str, count: int) -> None:
        row = self._kept(true)
        self._samples[row] += count
        if true == guess:
            self._hits[row] += count
            self._predicted[row] += count
        elif guess in (OTHER_LABELS, MISSED):  # of cells that were read back
            self._other_misses[row] += count
            self.unattributed += count
        elif guess == NO_PREDICTION:
            self._misses[row, guess] += count
        else:
            column = self._kept(guess)
            self._predicted[column] += count
            if column == OTHER_LABELS:
                self._other_misses[row] += count
            else:
                self._misses[row, column] += count

    def _kept(self, label: str) -> str:
        if label not in self._labels:
            if len(self._labels) > MAX_CLASSES:
                return OTHER_LABELS
            self._labels.add(label)
        return label

    def _fold(self) -> None:
        if len(self._misses) <= MAX_PAIRS:
            return
        by_rarity = sorted(self._misses.items(), key=lambda item: (item[1], item[0]))
        for (true, guess), count in by_rarity[: len(by_rarity) - _FOLD_TO]:  # a quarter at once, so it is seldom done
            self._other_misses[true] += count
            del self._misses[true, guess]


def worst_first(figures: ClassFigures) -> tuple[float, float, str]:
    """Sorts classes: least recall, then least precision."""
    return figures.recall, figures.precision, figures.label
