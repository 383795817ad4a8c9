"""What a device counts of its versions, and what it tells of that."""

from __future__ import annotations

import math

import numpy as np

from everlearn_client.edge.health import HealthLog
from everlearn_client.results import Predictions, ScoredLabel


def answer(*labels: str, novelty: tuple[float, ...] = (), score: float = 0.9) -> Predictions:
    top = tuple((ScoredLabel(label, 0, score),) for label in labels)
    return Predictions("models/m/versions/3", top, labels, None, 0.0, 0.0, novelty=novelty)


def test_counts_only_grow_and_hold_nothing_of_a_sample() -> None:
    log = HealthLog()
    log.answered(3, answer("cat", "dog", "cat", novelty=(0.5, 2.0, math.inf)), 0.006)
    log.failed(3)
    (use,) = log.messages(with_labels=True)
    assert (use.version, use.predictions, use.failed, use.watched, use.abstained) == (3, 4, 1, 3, 2)
    assert (use.novelty_sum, use.novelty_max) == (12.5, 10.0)
    assert dict(use.labels) == {"cat": 1}  # of what it abstained from there is no label
    assert use.latency_ms == 2.0


def test_labels_are_told_only_where_they_are_asked_for() -> None:
    log = HealthLog()
    log.answered(3, answer("cat"), 0.001)
    (use,) = log.messages(with_labels=False)
    assert not use.labels
    assert not use.other_labels


def test_scores_that_are_not_numbers_are_failures() -> None:
    log = HealthLog()
    log.answered(3, answer("cat", "dog", score=math.nan), 0.001)
    values = np.array([[1.0, 2.0], [math.inf, 0.0]], np.float32)
    log.answered(4, Predictions("models/m/versions/4", (), ("a", "b"), None, 0.0, 0.0, values), 0.001)
    assert [(use.version, use.predictions, use.failed) for use in log.messages(with_labels=False)] == [
        (3, 2, 2),
        (4, 2, 1),
    ]


def test_what_is_told_is_bounded_however_many_versions_and_labels_there_are() -> None:
    log = HealthLog()
    for version in range(1, 9):
        for number in range(600):
            log.answered(version, answer(f"label-{number}", "often"), 0.001)
    uses = log.messages(with_labels=True)
    assert [use.version for use in uses] == [5, 6, 7, 8]
    assert all(len(use.labels) == 32 and use.labels["often"] == 600 for use in uses)
    assert all(sum(use.labels.values()) + use.other_labels == use.predictions for use in uses)


def test_two_starts_of_a_program_are_told_apart() -> None:
    assert HealthLog().boot != HealthLog().boot
