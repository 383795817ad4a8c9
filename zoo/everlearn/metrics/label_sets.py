"""How predicted sets of labels compare with the true ones: counts per label, and what follows from them.

Definitions are scikit-learn's (`precision_recall_fscore_support`, `accuracy_score` on label indicators,
zero_division=0). With hits, misses and false alarms of each label:

    micro F1    = 2 sum hits / sum (2 hits + misses + false alarms)      one figure over all pairs of sample and label
    macro F1    = mean over labels of 2 hits / (2 hits + misses + false alarms)             every label counts alike
    subset accuracy = share of samples whose predicted set is the true one, whole

(Tsoumakas & Katakis 2007, "Multi-label classification: an overview".) A label is predicted where its probability is at
least THRESHOLD. Axes: B samples, C labels of the head.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt

from everlearn.errors import InputError
from everlearn.metrics.calibration import Reliability
from everlearn.metrics.confusion import MAX_CLASSES, OTHER_LABELS, ClassFigures, worst_first
from everlearn.truth import LabelSets, Truth

THRESHOLD: Final = 0.5
"""Least probability of a label that is predicted."""
_LEAST: Final = 1e-7
"""Probabilities are kept this far from 0 and 1 in the log-loss, or one sample would outweigh all others for ever."""


class LabelSetCounts:
    """Counts of some set of samples.

    >>> counts = LabelSetCounts.of(LabelSets((("red", "round"), ())), np.array([[0.9, 0.2], [0.6, 0.1]], np.float32),
    ...                            ("red", "round"))
    >>> counts.samples, counts.correct, round(counts.figures()["micro_f1"], 2)
    (2, 0, 0.5)
    """

    def __init__(self) -> None:
        self.samples = 0
        self.correct = 0
        self._labels: dict[str, tuple[int, int, int]] = {}
        """(hits, misses, false alarms)."""
        self._reliability = Reliability()
        self._loss_nats = 0.0

    @classmethod
    def of(cls, truth: Truth, scores_BC: npt.NDArray[np.float32] | None, known: Sequence[str]) -> Self:
        """Of a batch. Without a head nothing was predicted, and no sample was right.

        Raises InputError for truth of another kind.
        """
        if not isinstance(truth, LabelSets):
            raise InputError("this model learns sets of labels; send a list of labels for each sample", field="labels")
        counts = cls()
        counts.samples = len(truth)
        column_of = {label: column for column, label in enumerate(known)}
        has_BC = np.zeros((len(truth), len(known)), np.bool_)
        unknown_B = np.zeros(len(truth), np.bool_)
        for row, labels in enumerate(truth.sets_B):
            for label in labels:
                if label in column_of:
                    has_BC[row, column_of[label]] = True
                else:
                    unknown_B[row] = True
                    counts._add(label, 0, 1, 0)
        if scores_BC is None:
            scores_BC = np.zeros(has_BC.shape, np.float32)
        else:
            counts._announce(scores_BC, has_BC)
            counts.correct = int((((scores_BC >= THRESHOLD) == has_BC).all(axis=1) & ~unknown_B).sum())
        said_BC = scores_BC >= THRESHOLD
        hit_C, miss_C, alarm_C = (has_BC & said_BC).sum(0), (has_BC & ~said_BC).sum(0), (~has_BC & said_BC).sum(0)
        for column in np.flatnonzero(hit_C + miss_C + alarm_C).tolist():
            counts._add(known[column], int(hit_C[column]), int(miss_C[column]), int(alarm_C[column]))
        return counts

    @property
    def accuracy(self) -> float:
        """Subset accuracy; 0 where there is nothing."""
        return self.correct / self.samples if self.samples else 0.0

    @classmethod
    def accuracy_of(cls, parts: Iterable[Self]) -> float:
        """Of all of them together."""
        counts = [(part.correct, part.samples) for part in parts]
        return sum(correct for correct, _ in counts) / max(sum(samples for _, samples in counts), 1)

    @property
    def mix(self) -> Mapping[str, int]:
        """Label -> samples that have it."""
        return {label: hits + misses for label, (hits, misses, _) in self._labels.items() if hits + misses}

    def merge(self, other: Self) -> None:
        """Adds another's counts."""
        self.samples += other.samples
        self.correct += other.correct
        self._loss_nats += other._loss_nats
        self._reliability.merge(other._reliability)
        for label, (hits, misses, alarms) in other._labels.items():
            self._add(label, hits, misses, alarms)

    def figures(self) -> dict[str, Any]:
        """Names as on the wire; what is not known is left out."""
        rows = self._rows()
        hits, samples, predicted = (
            sum(getattr(row, name) for row in rows) for name in ("hits", "samples", "predicted")
        )
        worst = min((row for row in rows if row.samples), key=worst_first, default=None)
        found: dict[str, Any] = {
            "samples": self.samples,
            "accuracy": self.accuracy,
            "balanced_accuracy": _mean([row.recall for row in rows if row.samples]),
            "macro_precision": _mean([row.precision for row in rows]),
            "macro_f1": _mean([row.f1 for row in rows]),
            "micro_precision": hits / predicted if predicted else 0.0,
            "micro_recall": hits / samples if samples else 0.0,
            "micro_f1": 2 * hits / (samples + predicted) if hits else 0.0,
            "worst_class": worst.label if worst else "",
            "worst_recall": worst.recall if worst else 0.0,
            "announced": self._reliability.samples,
        }
        if self._reliability.samples:
            found |= {"ece": self._reliability.ece, "overconfidence": self._reliability.overconfidence}
            found["log_loss"] = self._loss_nats / self._reliability.samples
        return found

    def details(self, most: int, now: Self) -> dict[str, Any]:
        """Figures of each label, least recall first, and the reliability diagram; `now`: of the window."""
        rows = sorted(self._rows(), key=worst_first)
        recall_now = {row.label: row.recall for row in now._rows() if row.samples}
        classes = []
        for row in rows[:most]:
            told: dict[str, Any] = {name: getattr(row, name) for name in ("label", "samples", "predicted", "hits")}
            told |= {name: getattr(row, name) for name in ("precision", "recall", "f1")}
            classes.append(told | ({"windowed_recall": recall_now[row.label]} if row.label in recall_now else {}))
        bins = [
            {"samples": samples, "confidence": confidence, "accuracy": accuracy}
            for samples, confidence, accuracy in self._reliability.bins()
            if samples
        ]
        return {"classes": classes, "classes_left_out": len(rows) - len(classes), "reliability": bins}

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "samples": self.samples,
            "correct": self.correct,
            "labels": [[label, *counts] for label, counts in sorted(self._labels.items())],
            "reliability": self._reliability.to_dict(),
            "loss": self._loss_nats,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """What `to_dict` wrote. Raises KeyError, TypeError or ValueError for anything else."""
        counts = cls()
        counts.samples, counts.correct = int(data["samples"]), int(data["correct"])
        for label, hits, misses, alarms in data["labels"]:
            if min(int(hits), int(misses), int(alarms)) < 0:
                raise ValueError("a label with fewer than no samples")
            counts._labels[str(label)] = int(hits), int(misses), int(alarms)
        counts._reliability = Reliability.from_dict(data["reliability"])
        counts._loss_nats = float(data["loss"])
        if not 0 <= counts.correct <= counts.samples:
            raise ValueError("more samples are right than there are")
        return counts

    def _announce(self, scores_BC: npt.NDArray[np.float32], has_BC: npt.NDArray[np.bool_]) -> None:
        chance = scores_BC.astype(np.float64).ravel()
        has = has_BC.ravel()
        self._reliability.add(np.maximum(chance, 1 - chance), (chance >= THRESHOLD) == has)
        right = np.clip(np.where(has, chance, 1 - chance), _LEAST, 1.0)
        self._loss_nats -= float(np.log(right).sum())

    def _add(self, label: str, hits: int, misses: int, alarms: int) -> None:
        if label not in self._labels and len(self._labels) >= MAX_CLASSES:
            label = OTHER_LABELS
        before = self._labels.get(label, (0, 0, 0))
        self._labels[label] = before[0] + hits, before[1] + misses, before[2] + alarms

    def _rows(self) -> list[ClassFigures]:
        return [
            ClassFigures(label=label, samples=hits + misses, predicted=hits + alarms, hits=hits)
            for label, (hits, misses, alarms) in self._labels.items()
        ]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
