"""The rows of the issue's table that this benchmark can measure, met or not."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from tests.benchmarks.learning.joint import NAME as JOINT
from tests.benchmarks.learning.joint import SCALED
from tests.benchmarks.learning.scores import Score
from tests.benchmarks.table import Row

DEFAULT = "analytic"
PLAIN = "plain ridge"
Scores = Mapping[tuple[str, str], Mapping[str, Sequence[Score]]]
"""(dataset, stream) -> learner -> one score a seed."""


def rows(scores: Scores, peers: Sequence[str]) -> list[Row]:
    """One row per target and dataset, in the issue's order."""
    found: list[Row] = []
    for (dataset, stream), by_name in sorted(scores.items(), key=lambda item: item[0][0]):
        if stream == "class" and DEFAULT in by_name:
            found += _default(dataset, by_name, peers)
        if stream == "class":
            found += _latent_replay(dataset, by_name)
        if stream == "long_tail" and DEFAULT in by_name and PLAIN in by_name:
            found += _long_tail(dataset, by_name)
    return found


def _default(dataset: str, by_name: Mapping[str, Sequence[Score]], peers: Sequence[str]) -> list[Row]:
    found = []
    if JOINT in by_name:
        gap, each = _gap(by_name[DEFAULT], by_name[JOINT], lambda score: score.final)
        scaled, _ = _gap(by_name[DEFAULT], by_name[SCALED], lambda score: score.final)
        found.append(
            Row(
                group=dataset,
                what="default recipe, class-incremental, one pass, against joint logistic regression",
                target=">= joint - 0.5 points",
                measured=f"{gap:+.2f} points",
                met=gap >= -0.5,
                detail=f"{_percent(by_name[DEFAULT])} against {_percent(by_name[JOINT])}; by seed {each}; "
                f"against the same on features of length 10: {scaled:+.2f}",
            )
        )
    there = {name: by_name[name] for name in peers if name in by_name}
    if there:
        best = max(there, key=lambda name: float(np.mean([score.final for score in there[name]])))
        gap, each = _gap(by_name[DEFAULT], there[best], lambda score: score.final)
        found.append(
            Row(
                group=dataset,
                what="default recipe, class-incremental, one pass, against the best peer",
                target="above every peer",
                measured=f"{gap:+.2f} points over {best}",
                met=gap > 0,
                detail=f"{_percent(by_name[DEFAULT])} against {_percent(there[best])}; same seeds; by seed {each}",
            )
        )
    return found


def _latent_replay(dataset: str, by_name: Mapping[str, Sequence[Score]]) -> list[Row]:
    ours, theirs = by_name.get("latent_replay"), by_name.get("Replay 1000")
    if not ours or not theirs:
        return []
    gap, each = _gap(ours, theirs, lambda score: score.final)
    return [
        Row(
            group=dataset,
            what="`latent_replay` with 1,000 latents against Avalanche Replay with 1,000 of the same features",
            target=">= + 3 points",
            measured=f"{gap:+.2f} points",
            met=gap >= 3,
            detail=f"{_percent(ours)} against {_percent(theirs)} at its best rate; by seed {each}",
        )
    ]


def _long_tail(dataset: str, by_name: Mapping[str, Sequence[Score]]) -> list[Row]:
    ours, plain = by_name[DEFAULT], by_name[PLAIN]
    gap, each = _gap(ours, plain, lambda score: score.macro)
    worst = 100 * float(np.mean([score.worst for score in ours]))
    return [
        Row(
            group=dataset,
            what="long tail 100: class-balanced accuracy of the default against plain ridge",
            target=">= + 6 points",
            measured=f"{gap:+.2f} points",
            met=gap >= 6,
            detail=f"{_percent(ours, lambda score: score.macro)} against {_percent(plain, lambda score: score.macro)}; "
            f"by seed {each}",
        ),
        Row(
            group=dataset,
            what="long tail 100: worst class of the default",
            # Of the digits 143 come in the most frequent class and one in the rarest: nothing to measure by.
            target="" if dataset == "digits" else ">= 50 %",
            measured=f"{worst:.1f} %",
            met=None if dataset == "digits" else worst >= 50,
            detail=("the rarest class has one sample; " if dataset == "digits" else "")
            + f"plain ridge {_percent(plain, lambda score: score.worst)}; by seed "
            + ", ".join(f"{100 * score.worst:.0f}" for score in ours),
        ),
    ]


def _gap(ours: Sequence[Score], theirs: Sequence[Score], of: Callable[[Score], float]) -> tuple[float, str]:
    """Mean difference in points over the seeds that both have, and each."""
    each = [100 * (of(one) - of(other)) for one, other in zip(ours, theirs, strict=False)]
    return float(np.mean(each)), ", ".join(f"{value:+.2f}" for value in each)


def _percent(scores: Sequence[Score], of: Callable[[Score], float] = lambda score: score.final) -> str:
    return f"{100 * np.mean([of(score) for score in scores]):.2f} %"
