"""Test-then-train where a sample has several targets: sets of labels, or values. Counts and sums only.

What is counted of a batch is a class of its own (`LabelSetCounts`, `ValueErrors`); here are the total, the window as a
row of panes (see `window.py`: it covers from `window` samples to a pane and a batch more), clients, learning curve and
drift.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping
from typing import Any, Final, Generic, Self, TypeVar

import numpy as np
import numpy.typing as npt

from everlearn.errors import DataLossError, InputError, InvalidError
from everlearn.metrics.curve import LearningCurve
from everlearn.metrics.drift import FeatureMoments, label_distance
from everlearn.metrics.label_sets import LabelSetCounts
from everlearn.metrics.prequential import MAX_CLIENTS, OTHER_CLIENTS
from everlearn.metrics.record import Record
from everlearn.metrics.report import MAX_CLASSES
from everlearn.metrics.report import MAX_CLIENTS as MAX_TOLD
from everlearn.metrics.steps import Steps
from everlearn.metrics.value_errors import ValueErrors
from everlearn.metrics.window import PANES
from everlearn.truth import Truth
from everlearn.values import FeaturesBd

VERSION: Final = 1
C = TypeVar("C", LabelSetCounts, ValueErrors)


class _Pane(Generic[C]):
    """What is counted of some samples that came one after the other."""

    def __init__(self, counts: C) -> None:
        self.samples = 0
        self.counts: C = counts
        self.moments = FeatureMoments()


class TargetRecord(Record, Generic[C]):
    """Figures so far and over the last `window` samples, of several labels or of values.

    >>> from everlearn.truth import LabelSets
    >>> record = TargetRecord(LabelSetCounts)
    >>> features_Bd, known = np.ones((2, 3), np.float32), ("red", "round")
    >>> truth, scores = LabelSets((("red",), ("round",))), np.array([[0.9, 0.2], [0.1, 0.3]], np.float32)
    >>> record.test(truth, "a", scores_BC=scores, known=known, features_Bd=features_Bd)
    >>> record.tested, record.correct, record.accuracy
    (2, 1, 0.5)
    """

    def __init__(self, counts: type[C], window: int = 1000) -> None:
        if window < 1:
            raise InvalidError(f"window is {window}; it must be at least 1 sample", field="window")
        self.window = window
        self.steps = Steps()
        self._kind: type[C] = counts
        self._lock = threading.Lock()
        self._tested = 0
        self._total: C = counts()
        self._moments = FeatureMoments()
        self._curve = LearningCurve()
        self._panes: deque[_Pane[C]] = deque([_Pane(counts())])
        self._clients: dict[str, tuple[int, int]] = {}
        """(tested, correct), the one heard of last at the end."""

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
        """See Record."""
        if len(features_Bd) != len(truth) or (scores_BC is not None and scores_BC.shape != (len(truth), len(known))):
            raise InputError(f"{len(features_Bd)} samples and truth of {len(truth)}; each needs one", field="labels")
        batch = self._kind.of(truth, scores_BC, known)
        if not len(truth):
            return
        moments = FeatureMoments()
        moments.add(features_Bd)
        with self._lock:
            if self._kind is LabelSetCounts:  # of values no share is right
                self.steps.count(step, tested=len(truth), correct=batch.correct)
            pane = self._panes[-1]
            for counts in (self._total, pane.counts):
                counts.merge(batch)
            for sums in (self._moments, pane.moments):
                sums.merge(moments)
            pane.samples += len(truth)
            self._tested += len(truth)
            self._count_client(client, len(truth), batch.correct)
            self._curve.extend(self._tested, self._total.correct)
            self._turn()

    def forget_client(self, client: str) -> None:
        """See Record."""
        with self._lock:
            if client != OTHER_CLIENTS and client in self._clients:
                self._add_client(OTHER_CLIENTS, *self._clients.pop(client))
            self._moments = FeatureMoments()
            for pane in self._panes:
                pane.moments = FeatureMoments()

    @property
    def tested(self) -> int:
        """See Record."""
        return self._tested

    @property
    def correct(self) -> int:
        """See Record."""
        return self._total.correct

    @property
    def accuracy(self) -> float:
        """See Record."""
        return self._total.accuracy

    @property
    def window_accuracy(self) -> float:
        """See Record."""
        with self._lock:
            return self._kind.accuracy_of([pane.counts for pane in self._panes])

    def summary(self) -> dict[str, Any]:
        """See Record."""
        with self._lock:
            steps = {"steps": self.steps.summary()} if self.steps else {}
            return {"total": self._total.figures(), "window": self._recent().figures(), **steps}

    def report(self) -> dict[str, Any]:
        """See Record."""
        with self._lock:
            recent = self._recent()
            told: dict[str, Any] = {
                "total": self._total.figures(),
                "window": recent.figures(),
                "drift": self._drift(recent),
            }
            told |= self._total.details(MAX_CLASSES, recent)
            if self._kind is LabelSetCounts:  # of values no share is right
                points = self._curve.rows(self._tested, self._total.correct)
                names = ("samples", "accuracy", "accuracy_since")
                told["curve"] = [dict(zip(names, point, strict=True)) for point in points]
            clients = [(client, tested, right) for client, (tested, right) in self._clients.items()]
            clients.sort(key=lambda each: (-each[1], each[0]))
            told["clients"] = [
                {"client": client, "samples": tested, "accuracy": correct / tested}
                for client, tested, correct in clients[:MAX_TOLD]
            ]
            told |= {"steps": self.steps.report()} if self.steps else {}
            return told | {"clients_left_out": max(len(clients) - MAX_TOLD, 0)}

    def to_dict(self) -> dict[str, Any]:
        """See Record."""
        with self._lock:
            return {
                "version": VERSION,
                "window": self.window,
                "tested": self._tested,
                "total": self._total.to_dict(),
                "moments": self._moments.to_dict(),
                "curve": self._curve.to_dict(),
                "clients": {client: list(counts) for client, counts in self._clients.items()},
                "panes": [
                    {"samples": pane.samples, "counts": pane.counts.to_dict(), "moments": pane.moments.to_dict()}
                    for pane in self._panes
                ],
                **({"steps": self.steps.to_dict()} if self.steps else {}),
            }

    @classmethod
    def from_dict(cls, counts: type[C], data: Mapping[str, Any]) -> Self:
        """What `to_dict` wrote. Raises DataLossError for anything else, or counts that do not add up."""
        try:
            if data["version"] != VERSION:
                raise ValueError(f"version {data['version']}; this release reads version {VERSION}")
            record = cls(counts, window=int(data["window"]))
            record._tested = int(data["tested"])
            record._total = counts.from_dict(data["total"])
            record._moments = FeatureMoments.from_dict(data["moments"])
            record._curve = LearningCurve.from_dict(data["curve"])
            record._clients = {str(name): (int(n), int(right)) for name, (n, right) in data["clients"].items()}
            if "steps" in data:
                record.steps = Steps.from_dict(data["steps"])
            record._panes.clear()
            for each in data["panes"]:
                pane = _Pane(counts.from_dict(each["counts"]))
                pane.samples, pane.moments = int(each["samples"]), FeatureMoments.from_dict(each["moments"])
                record._panes.append(pane)
            if not record._panes or sum(pane.samples for pane in record._panes) > record._tested:
                raise ValueError("a window of more samples than were tested")
        except (KeyError, IndexError, TypeError, ValueError, AttributeError, InvalidError) as error:
            raise DataLossError(f"not a record of several targets: {error!r}") from error
        by_client = sum(tested for tested, _ in record._clients.values())
        if by_client != record._tested or record.steps.samples > record._tested:
            raise DataLossError("a record of several targets whose counts do not add up")
        return record

    def _recent(self) -> C:
        recent: C = self._kind()
        for pane in self._panes:
            recent.merge(pane.counts)
        return recent

    def _turn(self) -> None:
        """A new pane where the present one is full; the oldest goes while the others suffice."""
        if self._panes[-1].samples >= max(self.window // PANES, 1):
            self._panes.append(_Pane(self._kind()))
        while sum(pane.samples for pane in self._panes) - self._panes[0].samples >= self.window:
            self._panes.popleft()

    def _drift(self, recent: C) -> dict[str, Any]:
        now = FeatureMoments()
        for pane in self._panes:
            now.merge(pane.moments)
        samples = sum(pane.samples for pane in self._panes)
        found: dict[str, Any] = {"window_samples": samples, "samples_before": self._tested - samples}
        shift = now.shift_from(self._moments.without(now))
        if shift is not None:
            found |= {"norm_shift": shift[0], "projection_shift": shift[1]}
        before = {label: count - recent.mix.get(label, 0) for label, count in self._total.mix.items()}
        distance = label_distance(recent.mix, {label: count for label, count in before.items() if count > 0})
        return found | ({"label_distance": distance} if distance is not None else {})

    def _count_client(self, client: str, tested: int, correct: int) -> None:
        self._add_client(client, tested, correct)
        if len(self._clients) - (OTHER_CLIENTS in self._clients) > MAX_CLIENTS:
            quietest = next(name for name in self._clients if name != OTHER_CLIENTS)
            self._add_client(OTHER_CLIENTS, *self._clients.pop(quietest))

    def _add_client(self, client: str, tested: int, correct: int) -> None:
        before = self._clients.pop(client, (0, 0))
        self._clients[client] = (before[0] + tested, before[1] + correct)
