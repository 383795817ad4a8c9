"""Refuses labels and values that a model cannot learn, before anything is decoded."""

from __future__ import annotations

from collections.abc import Iterable

from everlearn.errors import InputError, InvalidError
from everlearn.inputs.samples import Samples, Waiting
from everlearn.outputs import quantise_values
from everlearn.spec import rules
from everlearn.spec.model import ModelSpec
from everlearn.truth import LabelSets, Truth, Values

MAX_BATCH_SAMPLES = 1024
MAX_SET_LABELS = 1000
"""Labels of one sample."""
_MAX_PASSED = 4096
"""Labels that are remembered, and a batch's more."""
_FIELDS = {"classification": "batch.labels", "multilabel": "batch.label_sets", "regression": "batch.values"}
_NEEDS = {
    "classification": "one label a sample in `labels`",
    "multilabel": "a set of labels a sample in `label_sets`",
    "regression": "a value for each output in `values`",
}


class TruthCheck:
    """What one declaration takes as truth."""

    def __init__(self, spec: ModelSpec) -> None:
        self._task = spec.task
        self._outputs = spec.declared_outputs
        self._closed = frozenset(spec.labels) if spec.privacy.tier == "dp" else None
        """The only labels there are, where one that appeared would tell of a sample."""
        self._passed: set[str] = set()
        """Labels that were found to be in order: a stream repeats few of them."""

    def refusal(self, truth: Truth, samples: Samples | Waiting | None, step: str = "") -> InvalidError | None:
        """Why the batch can have no effect, with the path of the field; None where nothing is wrong."""
        if step and self._task == "regression":
            return InputError(
                "what a step forgets is counted in samples that were right, and values are never quite right: name no "
                "step",
                field="batch.step",
            )
        count = len(samples) if samples is not None else 0
        if count > MAX_BATCH_SAMPLES:
            return InputError(f"{count} samples; send {MAX_BATCH_SAMPLES} a batch at most", field="batch.samples")
        field = _FIELDS[self._task]
        sent = _task_of(truth)
        if len(truth) and sent != self._task:
            return InputError(
                f"this model's task is {self._task}: send {_NEEDS[self._task]}, not `{_FIELDS[sent][6:]}`",
                field=_FIELDS[sent],
            )
        if len(truth) != count:
            return InputError(f"{len(truth)} labels for {count} samples; send one a sample", field=field)
        if isinstance(truth, Values):
            return self._of_values(truth) if count else None
        if isinstance(truth, LabelSets):
            return _of_sets(truth)
        if self._passed.issuperset(truth):
            return None
        refusal = _of_labels(truth, field) or self._of_closed(truth, field)
        if refusal is None and len(self._passed) < _MAX_PASSED:
            self._passed.update(truth)
        return refusal

    def _of_closed(self, labels: Iterable[str], field: str) -> InvalidError | None:
        if self._closed is None:
            return None
        place = next((place for place, label in enumerate(labels) if label not in self._closed), None)
        if place is None:
            return None
        return InputError(
            "the label is not declared, and with privacy.tier dp a model learns declared labels alone; add it to "
            "spec.labels",
            field=f"{field}[{place}]",
        )

    def _of_values(self, truth: Values) -> InvalidError | None:
        try:
            quantise_values(truth.values_BK, self._outputs)
        except InputError as error:
            return InputError(error.message, field=f"batch.{error.field}")
        return None


def _task_of(truth: Truth) -> str:
    if isinstance(truth, Values):
        return "regression"
    return "multilabel" if isinstance(truth, LabelSets) else "classification"


def _of_sets(truth: LabelSets) -> InvalidError | None:
    for row, labels in enumerate(truth.sets_B):
        field = f"batch.label_sets[{row}]"
        if len(labels) > MAX_SET_LABELS:
            return InputError(f"{len(labels)} labels; a sample has {MAX_SET_LABELS} at most", field=field)
        if len(set(labels)) < len(labels):
            return InputError("a label is twice in one set; send each once", field=field)
    # Each label once: a stream repeats few of them.
    first = {label: (row, place) for row, labels in enumerate(truth.sets_B) for place, label in enumerate(labels)}
    for label, (row, place) in first.items():
        refusal = _of_labels([label], f"batch.label_sets[{row}].labels", place)
        if refusal is not None:
            return refusal
    return None


def _of_labels(labels: Iterable[str], field: str, place: int | None = None) -> InvalidError | None:
    known: dict[str, int] = {}
    for position, label in enumerate(labels):
        known.setdefault(label, position if place is None else place)
    for label, position in known.items():
        try:
            rules.label(label)
        except ValueError as error:
            return InputError(f"the label {error}", field=f"{field}[{position}]")
    return None
