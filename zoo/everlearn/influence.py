"""How far a head moves when a part of what was learned is taken out.

Not the distance of weights, which depends on the units of features, but of what they say: over all samples learned,

    sqrt( mean |s'(x) - s(x)|^2 / mean |s(x) - mean s|^2 ),     s = x W + b

the root mean square change of the scores, in units of their own spread. Both means follow from n, S and G alone, so
nothing of a sample is needed. For heads over unit lengths long samples weigh more in it, and for several labels s is
what the probability is made of.

Axes: C classes, d features.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from everlearn.errors import PreconditionError
from everlearn.learners.base import Learned
from everlearn.learners.closed_form import LearnedSums
from everlearn.learners.targets import LearnedTargets
from everlearn.values import NEVER, FeatureScale, LinearHead

Float = npt.NDArray[np.float64]


def head_change(learned: Learned, scale: FeatureScale, before: LinearHead, after: LinearHead) -> float | None:
    """Of the samples in `learned`; `after` may lack classes of `before`, whose scores count as 0 there. None where the
    scores are all alike.

    Raises PreconditionError (reason NO_SUMS) for what keeps no sums.
    """
    count, mean_d, covariance_dd = _moments(learned, scale)
    if not count:
        return None
    weight_dC, bias_C = _columns(before, before.labels)
    left_dC, left_C = _columns(after, before.labels)
    moved_dC, moved_C = left_dC - weight_dC, left_C - bias_C
    spread = float(np.einsum("dc,dc->", weight_dC, covariance_dd @ weight_dC))
    moved = float(np.einsum("dc,dc->", moved_dC, covariance_dd @ moved_dC) + ((mean_d @ moved_dC + moved_C) ** 2).sum())
    return float(np.sqrt(max(moved, 0.0) / spread)) if spread > 0 else None


def _moments(learned: Learned, scale: FeatureScale) -> tuple[int, Float, Float]:
    """Samples, their mean and covariance, in units of features."""
    if isinstance(learned, LearnedSums):
        total_d, lower_dd = learned.sums.sum_Cd.sum(axis=0), learned.sums.gram_lower_dd
    elif isinstance(learned, LearnedTargets):
        total_d, lower_dd = learned.targets.total_d, learned.targets.gram_lower_dd
    else:
        raise PreconditionError("this model keeps no sums of its features", reason="NO_SUMS")
    count, step_d = learned.samples, scale.step_d.astype(np.float64)
    mean_d = total_d * step_d / max(count, 1)
    gram_dd = (lower_dd + np.tril(lower_dd, -1).T) * np.outer(step_d, step_d) / max(count, 1)
    return count, mean_d, gram_dd - np.outer(mean_d, mean_d)


def _columns(head: LinearHead, labels: tuple[str, ...]) -> tuple[Float, Float]:
    """Weights and biases of these classes; 0 of those that the head does not have, or never gives."""
    weight_dC, bias_C = np.zeros((head.weight_dC.shape[0], len(labels))), np.zeros(len(labels))
    at = {label: column for column, label in enumerate(head.labels)}
    for column, label in enumerate(labels):
        place = at.get(label)
        if place is not None and head.bias_C[place] > NEVER:
            weight_dC[:, column], bias_C[column] = head.weight_dC[:, place], head.bias_C[place]
    return weight_dC, bias_C
