from __future__ import annotations

import numpy as np
import pytest

from everlearn.errors import InvalidError
from everlearn.metrics import (
    average_accuracy,
    average_incremental_accuracy,
    backward_transfer,
    forgetting,
    seen_accuracy,
)

NAN = float("nan")
# By hand: task 0 falls from 0.9 over 0.95 to 0.6, task 1 rises from 0.7 to 0.8, task 2 is new.
THREE_TASKS = np.array([[0.9, NAN, NAN], [0.95, 0.7, NAN], [0.6, 0.8, 0.5]])


def test_accuracy_on_seen_tasks_is_averaged_row_by_row() -> None:
    assert seen_accuracy(THREE_TASKS) == pytest.approx([0.9, 0.825, 1.9 / 3])


def test_average_accuracy_is_that_of_the_last_row() -> None:
    assert average_accuracy(THREE_TASKS) == pytest.approx(1.9 / 3)


def test_average_incremental_accuracy_is_averaged_over_the_stream() -> None:
    assert average_incremental_accuracy(THREE_TASKS) == pytest.approx((0.9 + 0.825 + 1.9 / 3) / 3)


def test_forgetting_is_from_the_best_earlier_row_not_from_the_first() -> None:
    assert forgetting(THREE_TASKS) == pytest.approx(((0.95 - 0.6) + (0.7 - 0.8)) / 2)


def test_backward_transfer_is_from_the_diagonal() -> None:
    assert backward_transfer(THREE_TASKS) == pytest.approx(((0.6 - 0.9) + (0.8 - 0.7)) / 2)


def test_what_is_above_the_diagonal_is_never_read() -> None:
    filled = np.where(np.isnan(THREE_TASKS), 1.0, THREE_TASKS)
    for metric in (average_accuracy, average_incremental_accuracy, forgetting, backward_transfer):
        assert metric(filled) == metric(THREE_TASKS)


def test_one_task_forgets_nothing() -> None:
    assert forgetting(np.array([[0.4]])) == backward_transfer(np.array([[0.4]])) == 0.0


@pytest.mark.parametrize(
    "accuracy", [np.zeros((0, 0)), np.zeros((2, 3)), np.zeros(3), np.array([[0.5, 0], [NAN, 0.5]]), np.array([[95.0]])]
)
def test_a_matrix_that_is_not_one_of_accuracies_is_refused(accuracy: np.ndarray) -> None:
    with pytest.raises(InvalidError):
        forgetting(accuracy)
