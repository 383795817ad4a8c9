"""What devices reported of themselves: counters of each device and version, in RAM alone.

A device counts anew at each start of its program (a *boot*), and reports how far it has come. The same report twice
counts once, and one that was overtaken counts for nothing. After a restart of the server each device brings back what
it has counted since its own start; what it counted before that is lost, so that evidence can shrink and never grow.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from everlearn.metrics.drift import label_distance

MAX_DEVICES: Final = 10_000
"""Of one model. Beyond, a newcomer is not counted while all others were heard of lately."""
SILENT_S: Final = 600.0
"""A device that was not heard of for so long gives way to a newcomer."""
BOOTS: Final = 4
"""Boots of a device that are told apart from a new one."""
MAX_VERSIONS: Final = 8
"""Whose counters are kept of one device; those that nobody asks about go first."""
MAX_LABELS: Final = 64
"""Told apart of one device and version."""
GIVEN_UP: Final = 16
"""Versions that a device takes no more; the newest."""
OTHERS: Final = ""
"""Stands for labels that were not told apart."""


@dataclass(frozen=True, kw_only=True)
class Use:
    """How one version fared on one device."""

    predictions: int = 0
    failed: int = 0
    watched: int = 0
    """Samples whose novelty was told; `abstained` of them got no label."""
    abstained: int = 0
    novelty_sum: float = 0.0
    novelty_max: float = 0.0
    latency_ms: float = 0.0
    labels: Mapping[str, int] = field(default_factory=dict)

    def plus(self, other: Use) -> Use:
        """Of two boots; `other` is the later one."""
        labels = dict(self.labels)
        for label, count in other.labels.items():
            known = label if label in labels or len(labels) < MAX_LABELS else OTHERS
            labels[known] = labels.get(known, 0) + count
        return Use(
            predictions=self.predictions + other.predictions,
            failed=self.failed + other.failed,
            watched=self.watched + other.watched,
            abstained=self.abstained + other.abstained,
            novelty_sum=self.novelty_sum + other.novelty_sum,
            novelty_max=max(self.novelty_max, other.novelty_max),
            latency_ms=other.latency_ms or self.latency_ms,
            labels=labels,
        )


@dataclass(frozen=True, kw_only=True)
class Report:
    """What one device says now."""

    labels: Mapping[str, str]
    boot: str
    running: int = 0
    """0 for no version."""
    uses: Mapping[int, Use] = field(default_factory=dict)
    """Since the boot."""
    given_up: Mapping[int, str] = field(default_factory=dict)
    """Version -> why, in a word."""


@dataclass(frozen=True, kw_only=True)
class Device:
    """What is known of one."""

    labels: Mapping[str, str]
    boots: tuple[str, ...]
    """The present one last."""
    running: int
    given_up: Mapping[int, str]
    heard_s: float
    """By a clock that does not jump."""
    heard_time_s: float
    """By the clock on the wall, for people."""
    earlier: Mapping[int, Use] = field(default_factory=dict)
    """Of earlier boots, by version."""
    now: Mapping[int, Use] = field(default_factory=dict)
    """Of the present one."""

    def knows(self, version: int) -> bool:
        """Whether it has said anything of it."""
        return version in self.now or version in self.earlier or version in self.given_up

    def use(self, version: int) -> Use | None:
        """Of all boots that are known; None where it never answered with it."""
        earlier, now = self.earlier.get(version), self.now.get(version)
        if earlier is None or now is None:
            return earlier or now
        return earlier.plus(now)


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """The devices that took one version, together."""

    devices: int = 0
    """That answered with it."""
    gave_up: int = 0
    """That take it no more; of these some may have answered before."""
    took: int = 0
    """Either."""
    predictions: int = 0
    """No device counted for more than its part; so are the shares."""
    failed_share: float = 0.0
    unsure_share: float | None = None
    """None where no novelty is told."""
    novelty: float | None = None
    """Mean."""
    labels: Mapping[str, int] = field(default_factory=dict)

    def label_distance(self, other: Cohort) -> float | None:
        """Jensen-Shannon distance of the predicted labels; None where either has too few."""
        return label_distance(self.labels, other.labels)


class DeviceReports:
    """Of one model, in the order in which devices were heard of. Event loop only."""

    def __init__(self) -> None:
        self._devices: dict[str, Device] = {}

    def __len__(self) -> int:
        return len(self._devices)

    def find(self, client: str) -> Device | None:
        """None for one that was not heard of."""
        return self._devices.get(client)

    def items(self) -> Iterator[tuple[str, Device]]:
        """All that are known, longest silent first."""
        return iter(self._devices.items())

    def forget(self, client: str) -> None:
        """Nothing is known of it any more."""
        self._devices.pop(client, None)

    def take(self, client: str, report: Report, *, now_s: float, asked: Collection[int]) -> bool:
        """Whether it counts. `asked`: versions that are on trial, or compared with."""
        known = self._devices.pop(client, None)
        if known is None and len(self._devices) >= MAX_DEVICES and not self._makes_room(now_s):
            return False
        if known is not None and report.boot in known.boots[:-1]:  # it travelled long: the device is further by now
            self._devices[client] = replace(known, heard_s=now_s)
            return False
        self._devices[client] = _with(known, report, now_s, {*asked, report.running})
        return True

    def cohort(
        self, version: int, *, most_of_one: int, chosen: Callable[[str, Device], bool] = lambda client, device: True
    ) -> Cohort:
        """Who took a version, and how it fared; of one device at most so many predictions count."""
        devices = gave_up = took = 0
        uses: list[tuple[Use, float]] = []
        for client, device in self._devices.items():
            if not device.knows(version) or not chosen(client, device):
                continue
            use, given = device.use(version), version in device.given_up
            answered = use is not None and use.predictions > 0
            gave_up, took, devices = gave_up + given, took + (given or answered), devices + answered
            if use is not None and answered:
                uses.append((use, min(1.0, most_of_one / use.predictions)))
        return replace(_pooled(uses), devices=devices, gave_up=gave_up, took=took)

    def _makes_room(self, now_s: float) -> bool:
        """The one that has been silent for longest goes, if that is long."""
        client = next(iter(self._devices))
        if now_s - self._devices[client].heard_s < SILENT_S:
            return False
        del self._devices[client]
        return True


def _with(known: Device | None, report: Report, now_s: float, asked: Collection[int]) -> Device:
    boots: tuple[str, ...] = (report.boot,)
    earlier, now = dict[int, Use](), dict[int, Use]()
    if known is not None:
        boots, earlier, now = known.boots, dict(known.earlier), dict(known.now)
        if boots[-1] != report.boot:
            earlier = {version: use for version in (*earlier, *now) if (use := known.use(version)) is not None}
            boots, now = (*boots, report.boot)[-BOOTS:], {}
    for version, use in report.uses.items():
        if version not in now or now[version].predictions <= use.predictions:
            now[version] = use
    kept = _newest({*earlier, *now}, asked)
    # Once said, it stays said: a device forgets the oldest of them.
    given_up = {**(known.given_up if known is not None else {}), **report.given_up}
    return Device(
        labels=report.labels,
        boots=boots,
        running=report.running,
        given_up={version: given_up[version] for version in sorted(given_up)[-GIVEN_UP:]},
        heard_s=now_s,
        heard_time_s=time.time(),
        earlier={version: use for version, use in earlier.items() if version in kept},
        now={version: use for version, use in now.items() if version in kept},
    )


def _newest(versions: Collection[int], asked: Collection[int]) -> set[int]:
    return set(sorted(versions, key=lambda version: (version in asked, version))[-MAX_VERSIONS:])


def _pooled(uses: Sequence[tuple[Use, float]]) -> Cohort:
    predictions = sum(use.predictions * weight for use, weight in uses)
    watched = sum(use.watched * weight for use, weight in uses)
    labels: dict[str, float] = {}
    for use, weight in uses:
        for label, count in use.labels.items():
            labels[label] = labels.get(label, 0.0) + count * weight
    return Cohort(
        predictions=round(predictions),
        failed_share=sum(use.failed * weight for use, weight in uses) / predictions if predictions else 0.0,
        unsure_share=sum(use.abstained * weight for use, weight in uses) / watched if watched else None,
        novelty=sum(use.novelty_sum * weight for use, weight in uses) / watched if watched else None,
        labels={label: round(count) for label, count in labels.items()},
    )
