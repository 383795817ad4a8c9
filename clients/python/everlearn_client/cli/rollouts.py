"""A rollout in words: what is tried, by whom, and what was withdrawn."""

from __future__ import annotations

from typing import Final

from everlearn_protos.v1 import models_pb2

_SHOWN: Final = 5
"""Withdrawn versions in a description; all are in `--output json`."""


def told_rollout(rollout: models_pb2.RolloutStatus) -> list[str]:
    """A line each."""
    lines = ["canary: none is tried now"]
    if rollout.canary:
        since = rollout.since.ToJsonString()
        lines = [
            f"canary: version {rollout.canary} since {since}; {rollout.waits_for or 'a verdict is due'}",
            f"  with it: {_cohort(rollout.tried)}",
            f"  with stable: {_cohort(rollout.others)}",
        ]
    if rollout.before:
        until = rollout.watched_until.ToJsonString()
        lines.append(f"watched: until {until} devices may send stable back to version {rollout.before}")
    for each in rollout.withdrawn[:_SHOWN]:
        lines.append(f"withdrawn: version {each.version} at {each.time.ToJsonString()}: {each.reason}")
    if len(rollout.withdrawn) > _SHOWN:
        lines.append(f"withdrawn: {len(rollout.withdrawn) - _SHOWN} more before those")
    return lines


def _cohort(cohort: models_pb2.CohortFigures) -> str:
    told = f"{cohort.devices:,} devices, {cohort.predictions:,} predictions that count"
    if cohort.predictions:
        told += f", {cohort.failed_share:.1%} failed"
    if cohort.HasField("unsure_share"):
        told += f", {cohort.unsure_share:.1%} unknown (mean novelty {cohort.novelty:.2f})"
    return told + (f"; {cohort.gave_up:,} gave it up" if cohort.gave_up else "")
