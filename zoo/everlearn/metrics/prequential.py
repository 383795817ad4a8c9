"""Test-then-train: each labelled batch is predicted before it is learned. An evaluation that needs no stored data.

(Gama, Sebastiao & Rodrigues 2013.) Counts and sums only: no sample, no feature, no score. Read it with care: neighbours
in a stream resemble each other, which flatters it. Axes: B samples, C classes, d features.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt

from everlearn.errors import DataLossError, InputError, InvalidError
from everlearn.metrics.confusion import MAX_CLASSES, MAX_PAIRS, NO_PREDICTION, OTHER_LABELS
from everlearn.metrics.curve import LearningCurve
from everlearn.metrics.drift import FeatureMoments
from everlearn.metrics.record import Record
from everlearn.metrics.report import figures, report
from everlearn.metrics.scores import ScoreCounts
from everlearn.metrics.steps import Steps
from everlearn.metrics.together import Tested, Together
from everlearn.metrics.window import Window
from everlearn.truth import Truth, single_labels
from everlearn.values import FeaturesBd

__all__ = [
    "MAX_CLASSES",
    "MAX_CLIENTS",
    "MAX_PAIRS",
    "NO_PREDICTION",
    "OTHER_CLIENTS",
    "OTHER_LABELS",
    "ClientRecord",
    "Prequential",
]

OTHER_CLIENTS: Final = ""
"""Stands for the clients that are not kept apart; a client's name is never empty."""
MAX_CLIENTS: Final = 1000
"""Clients kept apart: some have a new name at every start."""
VERSION: Final = 1
REPORT_VERSION: Final = 1
"""Of what lies under `report`; a record of an earlier release has none, and its report begins where that ended."""


@dataclass(frozen=True, kw_only=True)
class ClientRecord:
    """What one client's samples showed."""

    tested: int
    correct: int

    @property
    def accuracy(self) -> float:
        """0 where nothing was tested."""
        return self.correct / self.tested if self.tested else 0.0


class Prequential(Record):
    """Accuracy so far, over the last `window` samples, per class and per client; and the report of what was learned.

    A sample of a class that the head does not know yet counts as wrong: that is what a caller would have met.
    The record stays small, however long the stream: beyond MAX_PAIRS the rarest confusions are counted under
    OTHER_LABELS, beyond MAX_CLASSES new classes too, beyond MAX_CLIENTS those not heard of for longest under
    OTHER_CLIENTS. All other counts are exact. Threads may update, read and serialise it at once.
    Totals, window accuracy, clients and steps are counted with each batch. All else costs calls more than arithmetic,
    so it is counted of several batches together.

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
        self.steps = Steps()
        self._lock = threading.Lock()
        self._recent: deque[bool] = deque(maxlen=window)
        self._recent_correct = 0
        self._tested = 0
        self._correct = 0
        self._clients: dict[str, tuple[int, int]] = {}
        """(tested, correct), the one heard of last at the end."""
        self._curve = LearningCurve()
        self._together = Together(window)

    def update(
        self,
        true_labels: Sequence[str],
        predicted_labels: Sequence[str] | None,
        client: str = "",
        *,
        scores_BC: npt.NDArray[np.float32] | None = None,
        known: tuple[str, ...] = (),
        features_Bd: FeaturesBd | None = None,
        step: str = "",
    ) -> None:
        """Counts a batch; `predicted_labels` None = those of the largest scores; without scores, there was no head.

        `scores_BC` with `known`, the label of each column, also feed calibration and AUC, `features_Bd` the drift; a
        row that is not finite feeds neither. Raises InputError as Record.test does; then nothing is counted.
        """
        _check_rows(len(true_labels), scores_BC, known, features_Bd)
        if predicted_labels is None:
            predicted_labels = _winners(len(true_labels), scores_BC, known)
        if len(predicted_labels) != len(true_labels):
            raise InputError(
                f"{len(predicted_labels)} predictions for {len(true_labels)} labels; each needs one", field="labels"
            )
        if not true_labels:
            return
        hits = [true == predicted for true, predicted in zip(true_labels, predicted_labels, strict=True)]
        with self._lock:
            self.steps.count(step, tested=len(hits), correct=sum(hits))
            self._count_client(client, len(hits), sum(hits))
            self._extend(hits)
            self._curve.extend(self._tested, self._correct)
            self._together.add(
                Tested(
                    client=client,
                    labels=true_labels,
                    predicted=predicted_labels,
                    hits=hits,
                    scores_BC=scores_BC,
                    known=known,
                    features_Bd=features_Bd,
                )
            )

    def settle(self) -> None:
        """Counts what waits to be counted together; from here on nothing of a batch is held. Whatever reads does so."""
        with self._lock:
            self._together.settle()

    def test(
        self,
        truth: Truth,
        client: str,
        *,
        scores_BC: npt.NDArray[np.float32] | None,
        known: tuple[str, ...],
        features_Bd: FeaturesBd,
        step: str = "",
    ) -> None:
        """See Record and `update`."""
        labels = single_labels(truth)
        self.update(labels, None, client, scores_BC=scores_BC, known=known, features_Bd=features_Bd, step=step)

    def merge(self, other: Prequential) -> None:
        """Adds another record's counts. For the window, the other's samples are the newer ones.

        Raises InvalidError where the windows differ, or both name steps: their order is not known.
        """
        if self.steps and other.steps:
            raise InvalidError("both records name steps, in an order of their own each; one may", field="steps")
        if other.window != self.window:
            raise InvalidError(f"a window of {other.window} samples; this one has {self.window}", field="window")
        other.settle()
        with self._lock:
            self._together.settle()
            base = self._tested, self._correct
            self.steps = Steps.from_dict(other.steps.to_dict()) if other.steps else self.steps
            self._together.confusion.merge(other._together.confusion)
            for client, (tested, correct) in other._clients.items():
                self._count_client(client, tested, correct)
            self._extend(list(other._recent))
            self._together.scores.merge(other._together.scores)
            self._together.moments.merge(other._together.moments)
            for tested, correct in other._curve.points:
                self._curve.extend(base[0] + tested, base[1] + correct)
            self._together.panes.extend(other._together.panes)
            self._together.fit()

    def forget_client(self, client: str) -> None:
        """See Record."""
        if client == OTHER_CLIENTS:
            return
        with self._lock:
            self._together.settle()
            if client in self._clients:
                self._add_client(OTHER_CLIENTS, *self._clients.pop(client))
            self._together.panes.rename_client(client, OTHER_CLIENTS)
        self.forget_features()

    def forget_features(self) -> None:
        """Features mean something else from now on: drift is measured anew, all else goes on."""
        with self._lock:
            self._together.settle()
            self._together.moments = FeatureMoments()
            self._together.panes.forget_features()

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
        with self._lock:
            self._together.settle()
            return self._together.confusion.cells

    @property
    def clients(self) -> Mapping[str, ClientRecord]:
        """Client -> what its samples showed; some together, see OTHER_CLIENTS."""
        return {
            client: ClientRecord(tested=tested, correct=correct) for client, (tested, correct) in self._clients.items()
        }

    def recall(self) -> Mapping[str, float]:
        """True label -> share of its samples that were predicted right. The least of them is the worst class."""
        with self._lock:
            self._together.settle()
            return self._together.confusion.recall()

    @property
    def temperature(self) -> float | None:
        """T of softmax(scores / T), fitted to the window, else to all so far; None while too little is known."""
        with self._lock:
            self._together.settle()
            return self._together.temperature

    def summary(self) -> dict[str, Any]:
        """The figures alone, `total` and `window` (see report.figures): small enough to go into every version."""
        with self._lock:
            self._together.settle()
            return {
                "total": figures(self._together.confusion, self._together.scores),
                "window": figures(self._together.panes.confusion(), self._together.panes.scores()),
                **({"steps": self.steps.summary()} if self.steps else {}),
            }

    def report(self) -> dict[str, Any]:
        """Everything that is known of what was learned (see report.report), JSON-able; takes milliseconds."""
        with self._lock:
            self._together.settle()
            told = report(
                confusion=self._together.confusion,
                scores=self._together.scores,
                moments=self._together.moments,
                curve=self._curve,
                window=self._together.panes,
            )
            return told | ({"steps": self.steps.report()} if self.steps else {})

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, counts and sums only. Earlier releases read it too: what they do not know is under `report`
        and `steps`."""
        with self._lock:
            self._together.settle()
            cells = sorted(self._together.confusion.cells.items())
            return {
                "version": VERSION,
                "window": self.window,
                "recent": "".join("1" if hit else "0" for hit in self._recent),
                "confusion": [[true, predicted, count] for (true, predicted), count in cells],
                "clients": {client: list(counts) for client, counts in self._clients.items()},
                "report": {
                    "version": REPORT_VERSION,
                    "predicted": sorted(self._together.confusion.predicted.items()),
                    "unattributed": self._together.confusion.unattributed,
                    "scores": self._together.scores.to_dict(),
                    "moments": self._together.moments.to_dict(),
                    "curve": self._curve.to_dict(),
                    "panes": self._together.panes.to_list(),
                    "announced": self._together.announced,
                },
                **({"steps": self.steps.to_dict()} if self.steps else {}),
            }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """What `to_dict` wrote, also of earlier releases. Raises DataLossError for anything else, or counts that do not
        add up."""
        try:
            if data["version"] != VERSION:
                raise ValueError(f"version {data['version']}; this release reads version {VERSION}")
            record = cls(window=int(data["window"]))
            pairs = {(str(true), str(guess)): int(count) for true, guess, count in data["confusion"]}
            record._together.confusion.add(pairs)
            for client, (tested, correct) in data["clients"].items():
                record._count_client(str(client), int(tested), int(correct))
            record._extend([{"0": False, "1": True}[hit] for hit in data["recent"]])
            if "report" in data:
                record._take_report(data["report"])
            if "steps" in data:
                record.steps = Steps.from_dict(data["steps"])
        except (KeyError, IndexError, TypeError, ValueError, AttributeError, InvalidError) as error:
            raise DataLossError(f"not a prequential record: {error!r}") from error
        totals = (sum(pairs.values()), record._together.confusion.hits)
        parts = (record.window_tested - min(record.tested, record.window), max(record.steps.samples - record.tested, 0))
        if totals != (record.tested, record.correct) or any(parts):
            raise DataLossError("a prequential record whose counts do not add up")
        return record

    def _take_report(self, data: Mapping[str, Any]) -> None:
        if data["version"] != REPORT_VERSION:
            raise ValueError(f"report of version {data['version']}; this release reads version {REPORT_VERSION}")
        predicted = [(str(label), int(count)) for label, count in data["predicted"]]
        self._together.confusion.take_predicted(predicted, int(data["unattributed"]))
        self._together.scores = ScoreCounts.from_dict(data["scores"])
        self._together.moments = FeatureMoments.from_dict(data["moments"])
        self._curve = LearningCurve.from_dict(data["curve"])
        self._together.panes = Window.from_list(self.window, data["panes"])
        self._together.fit()  # earlier releases fitted it with each batch, and did not write it
        if data.get("announced") is not None:
            self._together.announced = float(data["announced"])
        parts = (
            self._together.panes.samples,
            self._together.scores.reliability.samples,
            self._together.moments.samples,
        )
        if max(parts) > self._tested or (self._curve.points and self._curve.points[-1][0] > self._tested):
            raise ValueError("a report of more samples than were tested")

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


def _check_rows(
    rows: int, scores_BC: npt.NDArray[np.float32] | None, known: tuple[str, ...], features_Bd: FeaturesBd | None
) -> None:
    if scores_BC is not None and (scores_BC.shape != (rows, len(known)) or not known):
        raise InputError(
            f"scores have shape {scores_BC.shape}; it must be [{rows}, {max(len(known), 1)}]", field="scores"
        )
    if features_Bd is not None and (features_Bd.ndim != 2 or len(features_Bd) != rows):
        raise InputError(f"features have shape {features_Bd.shape}; it must be [{rows}, d]", field="features")


def _winners(rows: int, scores_BC: npt.NDArray[np.float32] | None, known: tuple[str, ...]) -> list[str]:
    if scores_BC is None:
        return [NO_PREDICTION] * rows
    return [known[winner] for winner in scores_BC.argmax(axis=1).tolist()]
