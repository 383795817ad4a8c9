"""Which version is a canary, what becomes of it, and which are withdrawn: a state, and pure steps from one to the next.

            offer                 well                    watch_hours over
    nothing ─────▶ canary ────────────────▶ watched ────────────────────────▶ nothing
                     │                        │
                     │ bad                    │ bad on all devices
                     ▼                        ▼
                 withdrawn                withdrawn, and the version before it is stable again

A canary may be open while the version before it is still watched: then the newer question is the canary's, and a
stable version that turns out bad ends both. What is withdrawn is never offered again.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, Literal, Self

from everlearn.errors import DataLossError
from everlearn.spec.rollout import DeviceHealth, Rollout
from everlearn_server.engine.device_reports import Cohort

HOUR_S: Final = 3600.0
KEPT: Final = 100
"""Withdrawn versions that are remembered, the newest."""
VERSION: Final = 1


@dataclass(frozen=True, kw_only=True)
class Withdrawn:
    """A version that devices do not get any more."""

    number: int
    reason: str
    time_s: float


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What is to be done now, and why, in words."""

    kind: Literal["wait", "promote", "withdraw", "give_way"]
    reason: str


@dataclass(frozen=True, kw_only=True)
class Watch:
    """A stable version that may still turn out bad."""

    number: int
    before: int
    """Stable before it."""
    since_s: float


@dataclass(frozen=True, kw_only=True)
class RolloutState:
    """Of one model. Numbers are of versions, times are by the clock on the wall."""

    canary: int = 0
    """0 for none."""
    opened_s: float = 0.0
    newer_than: int = 0
    """Only versions above it are offered: what was there when one was withdrawn has learned the same."""
    watch: Watch | None = None
    withdrawn: tuple[Withdrawn, ...] = ()
    """Oldest first."""

    # -- steps --------------------------------------------------------------------------------------------------

    def offered(self, number: int, *, now_s: float) -> RolloutState:
        """A version that has passed the gate becomes the canary, unless there is one or it may not be offered."""
        if self.canary or number <= self.newer_than or self.is_withdrawn(number):
            return self
        return replace(self, canary=number, opened_s=now_s, newer_than=number)

    def promoted(self, *, before: int, now_s: float) -> RolloutState:
        """The canary is stable now, and watched."""
        watch = Watch(number=self.canary, before=before, since_s=now_s) if before else None
        return replace(self, canary=0, watch=watch)

    def withdrawn_canary(self, reason: str, *, newest: int, now_s: float) -> RolloutState:
        """The canary is bad. `newest`: the newest version there is."""
        gone = replace(self, canary=0, newer_than=max(newest, self.newer_than))
        return gone._without(self.canary, reason, now_s)

    def gave_way(self) -> RolloutState:
        """The canary ends without a verdict; a newer one may be offered."""
        return replace(self, canary=0)

    def gone_back(self, reason: str, *, newest: int, now_s: float) -> RolloutState:
        """The watched version is bad; the one before it is stable again, and nobody watches that. A canary that is
        open knows what it knew, and goes with it."""
        assert self.watch is not None, "only a watched version gives way"
        state = self.withdrawn_canary(f"with version {self.watch.number}", newest=newest, now_s=now_s)
        state = state if self.canary else replace(self, newer_than=max(newest, self.newer_than))
        return replace(state, watch=None)._without(self.watch.number, reason, now_s)

    def moved_by_hand(self, stable: int, *, before: int, now_s: float) -> RolloutState:
        """Somebody has pointed stable at a version: that is what holds. Forward it is watched, backward it is not."""
        kept = tuple(each for each in self.withdrawn if each.number != stable)
        watch = Watch(number=stable, before=before, since_s=now_s) if 0 < before < stable else None
        return replace(self, canary=0, watch=watch, withdrawn=kept)

    def without(self, gone: frozenset[int]) -> RolloutState:
        """Versions that are not there any more are no canary, and nothing to go back to."""
        state = replace(self, canary=0) if self.canary in gone else self
        watch = state.watch
        return replace(state, watch=None) if watch and {watch.number, watch.before} & gone else state

    def _without(self, number: int, reason: str, now_s: float) -> RolloutState:
        kept = tuple(each for each in self.withdrawn if each.number != number)
        return replace(self, withdrawn=(*kept, Withdrawn(number=number, reason=reason, time_s=now_s))[-KEPT:])

    # -- questions ----------------------------------------------------------------------------------------------

    def is_withdrawn(self, number: int) -> bool:
        """Whether devices had it, and it was bad."""
        return any(each.number == number for each in self.withdrawn)

    def judged(self, declared: Rollout, tried: Cohort, others: Cohort, *, now_s: float) -> Verdict:
        """What becomes of the canary. `tried`: the chosen devices with it; `others`: with the stable version."""
        canary, open_s = declared.canary, max(0.0, now_s - self.opened_s)
        enough = tried.predictions >= canary.min_predictions and tried.devices >= canary.min_devices
        bad = unwell(declared.health, tried, others, rates=enough)
        if bad:
            return Verdict(kind="withdraw", reason=bad)
        missing = _missing(declared, tried, open_s)
        if not missing:
            told = f"{tried.devices:,} devices made {tried.predictions:,} predictions with it and are well"
            return Verdict(kind="promote", reason=told)
        if canary.max_hours is not None and open_s >= canary.max_hours * HOUR_S:
            return Verdict(kind="give_way", reason=f"no verdict after {canary.max_hours:g} h: {missing}")
        return Verdict(kind="wait", reason=missing)

    def watched(self, declared: Rollout, took: Cohort, before: Cohort, *, now_s: float) -> Verdict:
        """What becomes of the stable version that is watched, by all devices that took it."""
        assert self.watch is not None, "somebody must be watched"
        if now_s - self.watch.since_s >= declared.watch_hours * HOUR_S:
            return Verdict(kind="promote", reason=f"well for {declared.watch_hours:g} h")
        enough = took.predictions >= declared.canary.min_predictions
        bad = unwell(declared.health, took, before, rates=enough)
        return Verdict(kind="withdraw" if bad else "wait", reason=bad)

    # -- at rest ------------------------------------------------------------------------------------------------

    def to_json(self) -> str:
        """For the store."""
        return json.dumps({"version": VERSION, **asdict(self)}, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """What `to_json` wrote. Raises DataLossError."""
        try:
            told: dict[str, Any] = json.loads(text)
            if told.pop("version") != VERSION:
                raise ValueError(f"this release reads version {VERSION}")
            watch = told.pop("watch")
            withdrawn = tuple(Withdrawn(**each) for each in told.pop("withdrawn"))
            return cls(watch=Watch(**watch) if watch else None, withdrawn=withdrawn, **told)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataLossError(f"not the state of a rollout: {error!r}") from error


def unwell(health: DeviceHealth, tried: Cohort, others: Cohort, *, rates: bool) -> str:
    """What is bad, in words; empty where nothing is. `rates`: there are predictions enough to compare shares."""
    allowed = max(health.max_failures, int(health.max_failed_share * tried.took))
    if tried.gave_up > allowed:
        return f"{tried.gave_up:,} of {tried.took:,} devices gave it up; {allowed:,} may"
    if not rates:
        return ""
    risen = tried.failed_share - others.failed_share
    if risen > health.max_error_rise:
        return (
            f"{tried.failed_share:.1%} of its predictions failed, and {others.failed_share:.1%} before; "
            f"{health.max_error_rise:.1%} more may"
        )
    unsure, usual = tried.unsure_share or 0.0, others.unsure_share or 0.0
    if unsure - usual > health.max_unsure_rise:
        return (
            f"{unsure:.1%} of its samples got no label, and {usual:.1%} before; {health.max_unsure_rise:.1%} more may"
        )
    distance = None if health.max_label_shift is None else tried.label_distance(others)
    if distance is not None and health.max_label_shift is not None and distance > health.max_label_shift:
        return f"its labels are {distance:.2f} from those predicted before; {health.max_label_shift:g} is allowed"
    return ""


def _missing(declared: Rollout, tried: Cohort, open_s: float) -> str:
    """What a canary waits for, in words; empty where that is nothing."""
    canary, missing = declared.canary, []
    if tried.devices < canary.min_devices:
        missing.append(f"{canary.min_devices - tried.devices:,} more devices")
    if tried.predictions < canary.min_predictions:
        missing.append(f"{canary.min_predictions - tried.predictions:,} more predictions")
    if open_s < canary.min_hours * HOUR_S:
        missing.append(f"{canary.min_hours - open_s / HOUR_S:.2g} h")
    return ", ".join(missing)
