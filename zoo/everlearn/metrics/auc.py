"""How well the scores of a class rank its samples above all others: one-vs-rest AUC, from histograms.

AUC of a class = P(a sample of it scores higher than a sample of another class) + 1/2 P(they tie): the area under its
ROC curve (Hanley & McNeil 1982; one-vs-rest: Provost & Domingos 2000). The score is the probability that was announced,
softmax(scores / T) with the T of that moment (see `probabilities.py`); T is known after the first samples, so those are
not counted. Samples of one bin tie: bins are 3/8 wide in log-odds from -12 to 12, so the result differs from that of
the scores themselves by at most half the share of pairs that tie (`resolution`).

Two means are told apart, as scikit-learn does: `macro`, over classes, every class alike, and `pooled` (its "micro"),
over all pairs of a sample and a class.
Axes: R rows (classes kept apart, then one for the rest), 2 (others, own), K bins.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt

BINS: Final = 64
LIMIT: Final = 12.0
"""Log-odds of the outermost edges: a probability of 6e-6 and its complement."""
MAX_CLASSES: Final = 100
"""Classes with a histogram of their own, the first that came; the rest share one. 100 take about 25 KB of JSON."""

Counts = npt.NDArray[np.int64]


class ScoreHistograms:
    """Histograms of log-odds, of a class's own samples and of all others.

    >>> histograms = ScoreHistograms()
    >>> log_odds_BC = np.array([[3.0, -3.0], [1.0, -1.0], [2.0, -2.0]], np.float32)
    >>> added_2K = histograms.add(log_odds_BC, np.array([0, 0, 1]), ("cat", "dog"))
    >>> histograms.by_class(), histograms.macro()  # 1 of 2 pairs in order
    ({'cat': 0.5, 'dog': 0.5}, 0.5)
    """

    def __init__(self, max_classes: int = MAX_CLASSES) -> None:
        """`max_classes` 0: all classes share one histogram, for `pooled` alone."""
        self._max_classes = max_classes
        self._row_of: dict[str, int] = {}
        self._count_R2K: Counts = np.zeros((1, 2, BINS), np.int64)
        self._known: tuple[str, ...] = ()
        self._row_C: npt.NDArray[np.intp] = np.zeros(0, np.intp)

    def add(
        self, log_odds_BC: npt.NDArray[np.float32], true_B: npt.NDArray[np.intp], labels: tuple[str, ...]
    ) -> Counts:
        """Counts samples; `true_B`: column of the true class, -1 where it is none of `labels`.

        Returns what it added over all classes, [2, K], for the `add_pooled` of another.
        """
        if labels is not self._known:  # the same object for every batch that one head tests
            self._known, self._row_C = labels, self._rows(labels)
        scaled_BC = (log_odds_BC + np.float32(LIMIT)) * np.float32(BINS / (2 * LIMIT))
        cell_BC = np.clip(scaled_BC, 0, BINS - 1).astype(np.intp)
        cell_BC += self._row_C * BINS
        rows = len(self._count_R2K)
        own = np.flatnonzero(true_B >= 0)
        all_RK = np.bincount(cell_BC.ravel(), minlength=rows * BINS).reshape(rows, BINS)
        own_RK = np.bincount(cell_BC[own, true_B[own]], minlength=rows * BINS).reshape(rows, BINS)
        self._count_R2K[:, 0] += all_RK - own_RK
        self._count_R2K[:, 1] += own_RK
        own_K = own_RK.sum(axis=0)
        return np.stack([all_RK.sum(axis=0) - own_K, own_K])

    def add_pooled(self, count_2K: Counts) -> None:
        """Counts what another has counted, under no class."""
        self._count_R2K[-1] += count_2K

    def merge(self, other: ScoreHistograms) -> None:
        """Adds another's counts, class by class."""
        apart = [label for label, _ in sorted(other._row_of.items(), key=lambda item: item[1])]
        rows = self._rows(apart)
        np.add.at(self._count_R2K, rows, other._count_R2K[: len(apart)])
        self._count_R2K[-1] += other._count_R2K[-1]
        self._known = ()

    @property
    def classes_apart(self) -> int:
        """Classes with a histogram of their own."""
        return len(self._row_of)

    @property
    def resolution(self) -> float:
        """Most that `pooled` differs from the AUC of the scores themselves."""
        others_K, own_K = self._count_R2K.sum(axis=0)
        pairs = float(others_K.sum()) * float(own_K.sum())
        return float(np.dot(others_K.astype(float), own_K.astype(float))) / (2 * pairs) if pairs else 0.0

    def by_class(self) -> dict[str, float]:
        """AUC of each class apart that has own samples and others; the rest together are under no label."""
        area_R = _areas(self._count_R2K)
        return {label: float(area_R[row]) for label, row in self._row_of.items() if np.isfinite(area_R[row])}

    def macro(self) -> float | None:
        """Mean over the classes apart that can be told; None where there is none."""
        area_R = _areas(self._count_R2K)[:-1]
        known_R = area_R[np.isfinite(area_R)]
        return float(known_R.mean()) if known_R.size else None

    def pooled(self) -> float | None:
        """Over all pairs of a sample and a class; None where there are none."""
        area = float(_areas(self._count_R2K.sum(axis=0, keepdims=True))[0])
        return area if np.isfinite(area) else None

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: histograms without the empty bins at their ends."""
        return {
            "labels": [label for label, _ in sorted(self._row_of.items(), key=lambda item: item[1])],
            "rows": [[_trimmed(count_K) for count_K in count_2K] for count_2K in self._count_R2K],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], max_classes: int = MAX_CLASSES) -> Self:
        """What `to_dict` wrote. Raises KeyError, TypeError or ValueError for anything else."""
        made = cls(max_classes)
        made._rows([str(label) for label in data["labels"]])
        if len(data["rows"]) != len(made._count_R2K):
            raise ValueError(f"{len(data['rows'])} histograms; it must be {len(made._count_R2K)}")
        for row, halves in enumerate(data["rows"]):
            for half, (first, counts) in enumerate(halves):
                made._count_R2K[row, half, int(first) : int(first) + len(counts)] = counts
        if (made._count_R2K < 0).any():
            raise ValueError("a histogram with negative counts")
        return made

    def _rows(self, labels: Sequence[str]) -> npt.NDArray[np.intp]:
        """Row of each label, from 0; a new one has its own while there is room, else the last, which -1 names too."""
        for label in labels:
            if len(self._row_of) >= self._max_classes:
                break
            self._row_of.setdefault(label, len(self._row_of))
        apart = len(self._row_of)
        if apart >= len(self._count_R2K):
            grown_R2K = np.zeros((apart + 1, 2, BINS), np.int64)
            grown_R2K[: len(self._count_R2K) - 1], grown_R2K[-1] = self._count_R2K[:-1], self._count_R2K[-1]
            self._count_R2K = grown_R2K
        return np.array([self._row_of.get(label, apart) for label in labels], np.intp)


def _areas(count_R2K: Counts) -> npt.NDArray[np.float64]:
    """Per row; NaN where there are no own samples, or no others."""
    others_RK, own_RK = count_R2K[:, 0].astype(np.float64), count_R2K[:, 1].astype(np.float64)
    below_RK = others_RK.cumsum(axis=1) - others_RK / 2
    with np.errstate(invalid="ignore"):
        area_R: npt.NDArray[np.float64] = (own_RK * below_RK).sum(axis=1) / (others_RK.sum(axis=1) * own_RK.sum(axis=1))
    return area_R


def _trimmed(count_K: Counts) -> tuple[int, list[int]]:
    filled: Iterable[int] = np.flatnonzero(count_K).tolist()
    spots = list(filled)
    return (spots[0], count_K[spots[0] : spots[-1] + 1].tolist()) if spots else (0, [])
