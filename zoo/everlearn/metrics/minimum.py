"""A record of test-then-train that says nothing of few: what a tier `aggregate` reports.

Figures over all samples stay as they are. Of a class below the minimum neither name nor count is told: in means over
classes all of those together are one, as the rarest are in any record (OTHER_LABELS). The same over the window.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from everlearn.errors import PreconditionError
from everlearn.metrics.confusion import MISSED, OTHER_LABELS
from everlearn.metrics.record import Record
from everlearn.metrics.records import record_for
from everlearn.truth import Truth
from everlearn.values import FeaturesBd, Task

Told = Mapping[str, Any]
"""What `Record.to_dict` gives."""


class Coarse(Record):
    """A record of one moment but for classes, steps and clients of few samples. To be read only."""

    def __init__(self, told: Told, task: Task, *, class_samples: int, client_samples: int | None) -> None:
        """`class_samples`: below which a class or a step is not told of; `client_samples`: below which a client is
        not, None: no client ever is. Raises DataLossError for what is not a record of the task."""
        below = _below(_mix(task, told), class_samples)
        self._task: Task = task
        self._told = _folded(task, told, below, below)
        recent_below = below | _below(_recent_mix(task, told), class_samples)
        self._record = record_for(task, _folded(task, told, below, recent_below))
        self._client_samples = client_samples
        self.window = self._record.window
        self.steps = self._record.steps
        self._names_steps = all(row["samples"] >= class_samples for row in self.steps.report()["steps"])

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
        """Raises PreconditionError: this is what may be told of another record."""
        raise PreconditionError("this record is what may be told of another one; count in that")

    def forget_client(self, client: str) -> None:
        """As `test`."""
        raise PreconditionError("this record is what may be told of another one; forget in that")

    @property
    def tested(self) -> int:
        """See Record."""
        return self._record.tested

    @property
    def correct(self) -> int:
        """See Record."""
        return self._record.correct

    @property
    def accuracy(self) -> float:
        """See Record."""
        return self._record.accuracy

    @property
    def window_accuracy(self) -> float:
        """See Record."""
        return self._record.window_accuracy

    def summary(self) -> dict[str, Any]:
        """See Record."""
        return self._without_few(self._record.summary())

    def report(self) -> dict[str, Any]:
        """See Record."""
        # What has changed lately is told class by class of all that may be named, so that the two mixes compare.
        told, now = record_for(self._task, self._told).report(), self._record.report()
        told["window"] = now["window"]
        recall_now = {row["label"]: row.get("windowed_recall") for row in now.get("classes", ())}
        for row in told.get("classes", ()):
            if recall_now.get(row["label"]) is None:
                row.pop("windowed_recall", None)
        return self._without_few(told)

    def to_dict(self) -> dict[str, Any]:
        """Raises PreconditionError: it is another record that is kept."""
        raise PreconditionError("this record is what may be told of another one; keep that")

    def _without_few(self, told: dict[str, Any]) -> dict[str, Any]:
        if not self._names_steps:
            told.pop("steps", None)
        least = self._client_samples
        if "clients" in told:
            shown = [row for row in told["clients"] if least is not None and row["samples"] >= least]
            told["clients_left_out"] += len(told["clients"]) - len(shown)
            told["clients"] = shown
        return told


def _folded(task: Task, told: Told, below: frozenset[str], recent_below: frozenset[str]) -> dict[str, Any]:
    """The same counts without the names of some classes."""
    if task == "regression":  # outputs are declared, and each sample tells of all of them
        return dict(told)
    if task == "multilabel":
        panes = [{**pane, "counts": _without_labels(pane["counts"], recent_below)} for pane in told["panes"]]
        return {**told, "total": _without_labels(told["total"], below), "panes": panes}
    folded = dict(told)
    pairs: Counter[tuple[str, str]] = Counter()
    for true, guess, count in told["confusion"]:
        pairs[_pair(true, guess, below)] += count
    folded["confusion"] = [[true, guess, count] for (true, guess), count in sorted(pairs.items())]
    if "report" in told:
        predicted: Counter[str] = Counter()
        for label, count in told["report"]["predicted"]:
            predicted[OTHER_LABELS if label in below else label] += count
        panes = [_without_names(pane, recent_below) for pane in told["report"]["panes"]]
        folded["report"] = {**told["report"], "predicted": sorted(predicted.items()), "panes": panes}
    return folded


def _pair(true: str, guess: str, below: frozenset[str]) -> tuple[str, str]:
    row, column = (OTHER_LABELS if label in below else label for label in (true, guess))
    # Two classes that are one from now on are still not each other.
    is_miss = row == column == OTHER_LABELS and true != guess
    return row, MISSED if is_miss else column


def _without_names(pane: Told, below: frozenset[str]) -> dict[str, Any]:
    """Of a pane as `Window.to_list` gives it."""
    names: list[str] = list(pane["labels"])
    pairs = {(t, g): _pair(names[t], names[g], below) for _, t, g, _ in pane["cells"]}
    labels = sorted({label for pair in pairs.values() for label in pair})
    index = {label: place for place, label in enumerate(labels)}
    cells = [[c, index[pairs[t, g][0]], index[pairs[t, g][1]], count] for c, t, g, count in pane["cells"]]
    return {**pane, "labels": labels, "cells": cells}


def _without_labels(counts: Told, below: frozenset[str]) -> dict[str, Any]:
    """Of label sets as `LabelSetCounts.to_dict` gives them."""
    merged: dict[str, list[int]] = {}
    for label, *numbers in counts["labels"]:
        row = merged.setdefault(OTHER_LABELS if label in below else label, [0, 0, 0])
        for place, number in enumerate(numbers):
            row[place] += number
    return {**counts, "labels": [[label, *row] for label, row in sorted(merged.items())]}


def _below(mix: Mapping[str, int], least: int) -> frozenset[str]:
    return frozenset(label for label, samples in mix.items() if samples < least and label != OTHER_LABELS)


def _mix(task: Task, told: Told) -> Counter[str]:
    """Label -> samples, of all."""
    if task == "classification":
        return _added((true, count) for true, _, count in told["confusion"])
    return _of_sets(told["total"]) if task == "multilabel" else Counter()


def _recent_mix(task: Task, told: Told) -> Counter[str]:
    """Likewise, of the window."""
    mix: Counter[str] = Counter()
    if task == "classification":
        for pane in told.get("report", {}).get("panes", ()):  # records of earlier releases have none
            mix += _added((pane["labels"][true], count) for _, true, _, count in pane["cells"])
    elif task == "multilabel":
        for pane in told["panes"]:
            mix += _of_sets(pane["counts"])
    return mix


def _of_sets(counts: Told) -> Counter[str]:
    return _added((label, hits + misses) for label, hits, misses, _ in counts["labels"])


def _added(counts: Iterable[tuple[str, int]]) -> Counter[str]:
    mix: Counter[str] = Counter()
    for label, count in counts:
        mix[label] += count
    return mix
