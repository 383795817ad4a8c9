"""How much a learner forgot, from its accuracy matrix R: R[i, j] = accuracy on task j's test set after task i.

Names differ between papers and libraries; each function says whose definition it is. Only the lower triangle is read:
what is above it (tasks not learned yet) may be NaN. T tasks.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from everlearn.errors import InvalidError

Accuracy = npt.NDArray[np.float64]


def seen_accuracy(accuracy_TT: Accuracy) -> Accuracy:
    """A_i for each i: mean accuracy over the tasks seen after task i, every task alike (Mammoth, CapyMOA `seen`).

    >>> seen_accuracy(np.array([[0.9, np.nan], [0.5, 0.7]])).tolist()
    [0.9, 0.6]
    """
    _check(accuracy_TT)
    return np.array([accuracy_TT[task, : task + 1].mean() for task in range(len(accuracy_TT))])


def average_accuracy(accuracy_TT: Accuracy) -> float:
    """ACC = A_T: mean accuracy over all tasks at the end (Lopez-Paz & Ranzato 2017, GEM).

    >>> average_accuracy(np.array([[0.9, np.nan], [0.5, 0.75]]))
    0.625
    """
    return float(seen_accuracy(accuracy_TT)[-1])


def average_incremental_accuracy(accuracy_TT: Accuracy) -> float:
    """Mean of A_i over i: accuracy on what was seen, averaged over the stream (Rebuffi et al. 2017, iCaRL).

    >>> average_incremental_accuracy(np.array([[0.75, np.nan], [0.25, 0.75]]))
    0.625
    """
    return float(seen_accuracy(accuracy_TT).mean())


def forgetting(accuracy_TT: Accuracy) -> float:
    """F = mean over j < T of max over i < T of R[i, j], minus R[T, j] (Chaudhry et al. 2018, eq. 3).

    Negative where old tasks got better. 0 for one task. Avalanche (first - last) and Mammoth (max over all rows)
    define it otherwise.

    >>> forgetting(np.array([[0.75, np.nan], [0.25, 0.9]]))
    0.5
    """
    _check(accuracy_TT)
    last = len(accuracy_TT) - 1
    drops = [accuracy_TT[task:last, task].max() - accuracy_TT[last, task] for task in range(last)]
    return float(np.mean(drops)) if drops else 0.0


def backward_transfer(accuracy_TT: Accuracy) -> float:
    """BWT = mean over j < T of R[T, j] - R[j, j] (Lopez-Paz & Ranzato 2017, GEM). 0 for one task.

    >>> backward_transfer(np.array([[0.75, np.nan], [0.25, 0.9]]))
    -0.5
    """
    _check(accuracy_TT)
    last = len(accuracy_TT) - 1
    return float(np.mean(accuracy_TT[last, :last] - accuracy_TT.diagonal()[:last])) if last else 0.0


def _check(accuracy_TT: Accuracy) -> None:
    if accuracy_TT.ndim != 2 or accuracy_TT.shape[0] != accuracy_TT.shape[1] or not accuracy_TT.size:
        raise InvalidError(f"accuracies have shape {accuracy_TT.shape}; it must be [T, T], T >= 1", field="accuracy")
    seen = accuracy_TT[np.tril_indices(len(accuracy_TT))]
    if not ((seen >= 0) & (seen <= 1)).all():
        raise InvalidError("accuracies on seen tasks must be from 0 to 1, and known", field="accuracy")
