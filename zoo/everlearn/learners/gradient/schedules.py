"""The learning rate over steps, as a pure function: nothing to store but the step, so that any later update resumes."""

from __future__ import annotations

import math
from typing import Final

from everlearn.spec.recipe import Schedule

RISE: Final = 0.3
"""one_cycle: share of the steps before the peak, where no warm-up is declared (Smith & Topin 2018)."""
START: Final = 0.04
"""one_cycle: the rate it begins with, relative to the peak."""


def share_of_rate(schedule: Schedule, step: int) -> float:
    """Which share of the declared rate a step takes, counted from 0. Below the floor only while warming up.

    >>> share_of_rate(Schedule(kind="linear", total_steps=10), 5)
    0.5
    >>> [share_of_rate(Schedule(warmup_steps=4), step) for step in (0, 3, 9)]
    [0.25, 1.0, 1.0]
    """
    if schedule.kind == "one_cycle":
        return _one_cycle(schedule, step)
    if step < schedule.warmup_steps:
        return (step + 1) / schedule.warmup_steps
    return max(_after_warmup(schedule, step - schedule.warmup_steps), schedule.floor)


def _after_warmup(schedule: Schedule, step: int) -> float:
    left = max((schedule.total_steps or 0) - schedule.warmup_steps, 1)
    done = min(step / left, 1.0)
    match schedule.kind:
        case "step":
            return float((schedule.factor or 1.0) ** (step // (schedule.every or 1)))
        case "cosine":  # SGDR without restarts (Loshchilov & Hutter 2017, eq. 5)
            return 0.5 * (1 + math.cos(math.pi * done))
        case "linear":
            return 1 - done
        case "inverse_sqrt":  # Vaswani 2017, section 5.3, with 1 at the end of the warm-up
            warm = max(schedule.warmup_steps, 1)
            return math.sqrt(warm / (warm + step))
        case _:
            return 1.0


def _one_cycle(schedule: Schedule, step: int) -> float:
    total = schedule.total_steps or 1
    rise = schedule.warmup_steps or max(round(RISE * total), 1)
    if step < rise:
        return START + (1 - START) * 0.5 * (1 - math.cos(math.pi * step / rise))
    done = min((step - rise) / max(total - rise, 1), 1.0)
    return max(0.5 * (1 + math.cos(math.pi * done)), schedule.floor)
