"""How a device tells of itself: which versions answered here and how they fared, in counts; and what it is to run.

Nothing of a single sample leaves by this way: sums, counts, and, where the server asks for it, how often each label was
the best.
"""

from __future__ import annotations

import math
import re
import statistics
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from everlearn_client.client import Client
from everlearn_client.errors import InvalidArgument, ServerBug
from everlearn_client.resource_names import model_name
from everlearn_client.results import Predictions
from everlearn_protos.v1 import fleet_pb2

MAX_LABELS: Final = 16
_USES: Final = 4
"""Versions that are told of: the newest that answered."""
_TOLD_LABELS: Final = 32
_COUNTED_LABELS: Final = 512
_MOST_NOVEL: Final = 10.0
"""Of one sample: or one that is nothing at all would be all that a mean tells of."""
_LATENCIES: Final = 101
_NAME: Final = r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"
_KEY: Final = re.compile(rf"(?:[a-z0-9](?:[a-z0-9.-]{{0,251}}[a-z0-9])?/)?{_NAME}")
_VALUE: Final = re.compile(rf"(?:{_NAME})?")


def check_labels(labels: Mapping[str, str]) -> None:
    """As Kubernetes has them, and the server. Raises InvalidArgument."""
    if len(labels) > MAX_LABELS:
        raise InvalidArgument(f"has {len(labels)} labels; at most {MAX_LABELS}", field="labels")
    for key, value in labels.items():
        if not _KEY.fullmatch(key) or not _VALUE.fullmatch(value):
            raise InvalidArgument(
                f"{key!r}: {value!r} is not a device's label, such as site: north; each up to 63 letters, digits, '-', "
                "'_' or '.' that begin and end with a letter or digit",
                field="labels",
            )


@dataclass
class _Use:
    """Of one version since the start; see everlearn.v1.VersionUse."""

    predictions: int = 0
    failed: int = 0
    watched: int = 0
    abstained: int = 0
    novelty_sum: float = 0.0
    novelty_max: float = 0.0
    labels: dict[str, int] = field(default_factory=dict)
    other_labels: int = 0
    latency_ms: deque[float] = field(default_factory=lambda: deque(maxlen=_LATENCIES))

    def message(self, version: int, *, with_labels: bool) -> fleet_pb2.VersionUse:
        told: dict[str, int] = {}
        other = 0
        if with_labels:
            most = sorted(self.labels, key=lambda label: -self.labels[label])[:_TOLD_LABELS]
            told = {label: self.labels[label] for label in most}
            other = self.other_labels + sum(self.labels.values()) - sum(told.values())
        return fleet_pb2.VersionUse(
            version=version,
            predictions=self.predictions,
            failed=self.failed,
            watched=self.watched,
            abstained=self.abstained,
            novelty_sum=self.novelty_sum,
            novelty_max=self.novelty_max,
            latency_ms=statistics.median(self.latency_ms) if self.latency_ms else 0.0,
            labels=told,
            other_labels=other,
        )


class HealthLog:
    """Counts since the start of the program, version by version. Threads share it."""

    def __init__(self, clock_s: Callable[[], float] = time.monotonic) -> None:
        self.boot = uuid.uuid4().hex
        self._clock_s = clock_s
        self._begun_s = clock_s()
        self._turn = threading.Lock()
        self._uses: dict[int, _Use] = {}

    @property
    def up_s(self) -> float:
        """Since the start."""
        return max(0.0, self._clock_s() - self._begun_s)

    def answered(self, version: int, answer: Predictions, seconds: float) -> None:
        """A version has answered, in so many seconds."""
        values_NK = answer.values_NK
        scores = [[best[0].score] for best in answer.top if best] if values_NK is None else values_NK.tolist()
        count = len(answer.top) if values_NK is None else len(scores)
        if not count:
            return
        bad = sum(not all(map(math.isfinite, row)) for row in scores)
        with self._turn:
            use = self._use(version)
            use.predictions += count
            use.failed += bad
            use.latency_ms.append(1e3 * seconds / count)
            for novelty in answer.novelty:
                use.watched += 1
                use.abstained += not novelty <= 1
                counted = min(max(novelty, 0.0), _MOST_NOVEL) if novelty == novelty else _MOST_NOVEL
                use.novelty_sum += counted
                use.novelty_max = max(use.novelty_max, counted)
            for best, unknown in zip(answer.top, answer.abstained or (False,) * len(answer.top), strict=True):
                if best and not unknown:
                    _count(use, best[0].label)

    def failed(self, version: int, count: int = 1) -> None:
        """A version was asked, and gave no answer."""
        with self._turn:
            use = self._use(version)
            use.predictions += count
            use.failed += count

    def messages(self, *, with_labels: bool) -> list[fleet_pb2.VersionUse]:
        """Of the newest versions that answered."""
        with self._turn:
            return [use.message(version, with_labels=with_labels) for version, use in self._uses.items()]

    def _use(self, version: int) -> _Use:
        use = self._uses.pop(version, None) or _Use()
        self._uses[version] = use
        while len(self._uses) > _USES:
            del self._uses[next(iter(self._uses))]
        return use


@dataclass(frozen=True)
class Wanted:
    """What the server wants to run here."""

    number: int
    """0 for nothing yet."""
    canary: bool = False
    """Others do not have it: it is to be asked for as `canary`."""
    withdrawn: bool = False
    """What runs here is not to run any more."""


class CheckIn:
    """Asks one server about one model, and tells how the present version fares."""

    def __init__(
        self,
        model: str,
        version: str | int,
        *,
        labels: Mapping[str, str],
        log: HealthLog,
        running: Callable[[], int],
        given_up: Callable[[], Sequence[tuple[int, str]]],
    ) -> None:
        """`version`: what the device follows; one that follows a number is told nothing else. `given_up`: versions that
        it takes no more, each with why. Raises InvalidArgument for labels that are none."""
        check_labels(labels)
        self._model, self._version, self._labels, self._log = model, version, dict(labels), log
        self._running, self._given_up = running, given_up
        self._with_labels = False

    def __call__(self, client: Client) -> Wanted:
        """One call. Raises the client's errors."""
        follows = self._version if isinstance(self._version, str) else ""
        try:
            answer = client.models.check_in(self._request(follows))
        except ServerBug as error:
            if error.code != "UNIMPLEMENTED":
                raise
            return self._of_earlier_release(client, follows)
        self._with_labels = answer.tell_labels
        return Wanted(answer.version, answer.canary, answer.withdrawn) if follows else Wanted(int(self._version))

    def _request(self, follows: str) -> fleet_pb2.CheckInRequest:
        why = fleet_pb2.GivenUp.Why
        return fleet_pb2.CheckInRequest(
            name=model_name(self._model),
            follows=follows,
            labels=self._labels,
            boot=self._log.boot,
            up_s=self._log.up_s,
            running=self._running(),
            uses=self._log.messages(with_labels=self._with_labels),
            given_up=[fleet_pb2.GivenUp(version=number, why=why.Value(each)) for number, each in self._given_up()],
        )

    def _of_earlier_release(self, client: Client, follows: str) -> Wanted:
        """A server that nobody checks in to tells its aliases."""
        if not follows:
            return Wanted(int(self._version))
        return Wanted(client.models.get(self._model).status.aliases.get(follows, 0))


def _count(use: _Use, label: str) -> None:
    if label in use.labels or len(use.labels) < _COUNTED_LABELS:
        use.labels[label] = use.labels.get(label, 0) + 1
    else:
        use.other_labels += 1
