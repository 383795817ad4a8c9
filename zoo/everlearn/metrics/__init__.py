"""Metrics: how well a model does while it learns, from counts only."""

from everlearn.metrics.forgetting import (
    average_accuracy,
    average_incremental_accuracy,
    backward_transfer,
    forgetting,
    seen_accuracy,
)
from everlearn.metrics.prequential import ClientRecord, Prequential
from everlearn.metrics.steps import Steps

__all__ = [
    "ClientRecord",
    "Prequential",
    "Steps",
    "average_accuracy",
    "average_incremental_accuracy",
    "backward_transfer",
    "forgetting",
    "seen_accuracy",
]
