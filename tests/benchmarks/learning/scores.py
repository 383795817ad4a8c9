"""What a run is worth, from its predictions at every look: the same arithmetic for everlearn and for every peer.

Axes: E looks, T test samples, G groups (classes or domains), S steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from tests.benchmarks.learning.streams import Stream


@dataclass(frozen=True, kw_only=True)
class Run:
    """One learner on one stream."""

    predicted_ET: npt.NDArray[np.int64]
    """Predicted class at every look; -1 for none."""
    learn_ms: float
    """CPU time of learning a batch of 32, median."""
    solve_ms: float
    """CPU time of making predictions current at a look, median; 0 where learning does that."""
    state_bytes: int
    """What must be kept to go on learning."""
    setting: str = ""
    """What was chosen for it: a learning rate."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """Shares from 0 to 1."""

    final: float
    """Accuracy on all test samples at the end."""
    average: float
    """Accuracy on what had been seen, mean over the ends of steps (average incremental accuracy, Rebuffi 2017)."""
    anytime: float
    """The same, mean over all looks (A_AUC, Koh et al. 2022)."""
    forgetting: float
    """Best earlier accuracy on a group less the last, mean over groups that were there before the last step
    (Chaudhry et al. 2018, over groups)."""
    macro: float
    """Mean recall of the classes at the end."""
    worst: float
    """Recall of the worst class at the end."""
    curve_E: tuple[float, ...]
    """Accuracy on what had been seen, at each look."""


def score(stream: Stream, run: Run) -> Score:
    """The run's worth. Raises ValueError where it did not look as often as the stream says."""
    if run.predicted_ET.shape != stream.seen_ET.shape:
        raise ValueError(f"predictions are {run.predicted_ET.shape}; the stream looks {stream.seen_ET.shape}")
    right_ET = run.predicted_ET == stream.test_label_T
    curve_E = (right_ET & stream.seen_ET).sum(axis=1) / stream.seen_ET.sum(axis=1)
    recalls = [right_ET[-1, stream.test_label_T == one].mean() for one in np.unique(stream.test_label_T)]
    return Score(
        final=float(right_ET[-1].mean()),
        average=float(curve_E[stream.step_looks].mean()),
        anytime=float(curve_E.mean()),
        forgetting=_forgetting(stream, right_ET),
        macro=float(np.mean(recalls)),
        worst=float(np.min(recalls)),
        curve_E=tuple(float(value) for value in curve_E),
    )


def _forgetting(stream: Stream, right_ET: npt.NDArray[np.bool_]) -> float:
    drops = []
    for group in np.unique(stream.group_T):
        members = stream.group_T == group
        accuracy_S = right_ET[stream.step_looks][:, members].mean(axis=1)
        known_S = stream.seen_ET[stream.step_looks][:, members].any(axis=1)
        if known_S[:-1].any():
            drops.append(accuracy_S[:-1][known_S[:-1]].max() - accuracy_S[-1])
    return float(np.mean(drops)) if drops else 0.0
