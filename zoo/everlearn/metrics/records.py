"""Which record of test-then-train a task has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from everlearn.metrics.label_sets import LabelSetCounts
from everlearn.metrics.prequential import Prequential
from everlearn.metrics.record import Record
from everlearn.metrics.target_record import TargetRecord
from everlearn.metrics.value_errors import ValueErrors
from everlearn.values import Task


def record_for(task: Task, data: Mapping[str, Any] | None = None) -> Record:
    """What `to_dict` of such a record wrote, an empty one without. Raises DataLossError.

    >>> record_for("regression").tested
    0
    """
    if task == "classification":
        return Prequential() if data is None else Prequential.from_dict(data)
    if task == "multilabel":
        return TargetRecord(LabelSetCounts) if data is None else TargetRecord.from_dict(LabelSetCounts, data)
    return TargetRecord(ValueErrors) if data is None else TargetRecord.from_dict(ValueErrors, data)
