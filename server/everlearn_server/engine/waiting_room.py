"""Predicted samples that wait for their labels: quantised features in RAM, and nowhere else.

A label that comes days later joins here by the sample's id, and its batch goes on as one of features does: tested,
guarded, learned and committed in its turn. What waits is bounded in number and in time; the oldest leaves first, and
time is the server's own monotonic clock. A kill loses what waits, and nothing else.
"""

from __future__ import annotations

import asyncio
import threading
import time
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from everlearn.errors import EverlearnError, InputError, PreconditionError
from everlearn.spec.late_labels import LateLabels
from everlearn.truth import LabelSets, Truth, Values
from everlearn.values import FeaturesBd, FeatureScale
from everlearn_server.engine.batches import Derived
from everlearn_server.engine.sample_ids import SampleIds

FIELD: Final = "batch.samples.ids"
UNKNOWN: Final = "SAMPLE_UNKNOWN"
EXPIRED: Final = "SAMPLE_EXPIRED"
LEARNED: Final = "SAMPLE_LEARNED"
GONE: Final = "SAMPLE_GONE"
NONE_WAIT: Final = "NO_LATE_LABELS"
"""Reasons of a refusal."""
clock: Callable[[], float] = time.monotonic
"""Seconds; what every room goes by that is given no other."""
_DELAYS: Final = 1000
"""Newest labels whose delays are told of."""
_LONGEST_S, _SHORTEST_S = 60.0, 1.0
"""Between two looks at what has expired where nothing else happens; a tenth of ttl_s in between."""

_Waiting = tuple[bytes, float, str, str]
"""Quantised features, when they came, the best label that was told (empty where there is none), and the client that
asked (empty where it gave no name)."""


@dataclass(frozen=True, kw_only=True)
class LateFigures:
    """Counts since the room was opened."""

    given: int
    waiting: int
    waiting_bytes: int
    """Of their features."""
    joined: int
    correct: int
    """Of those, predicted right when they were asked about; of one label a sample alone."""
    expired: int
    left_early: int
    delay_median_s: float | None
    delay_p90_s: float | None

    @property
    def coverage(self) -> float:
        """Labels for predictions."""
        return self.joined / self.given if self.given else 0.0


class WaitingRoom:
    """Of one model. Any thread may call; predictions give, the writer joins."""

    def __init__(
        self, declared: LateLabels, scale: FeatureScale, *, clock_s: Callable[[], float] | None = None
    ) -> None:
        self._declared = declared
        self._scale = scale
        self._clock = clock_s or clock
        self._began_s = self._clock()
        self._ids = SampleIds()
        self._waiting: OrderedDict[int, _Waiting] = OrderedDict()
        self._lock = threading.Lock()
        self._next = 0
        self._early = -1
        """Highest number that left before its time."""
        self._joined = self._correct = self._expired = self._left_early = 0
        self._delays_s: deque[float] = deque(maxlen=_DELAYS)
        self._tended = False

    def __len__(self) -> int:
        return len(self._waiting)

    def configure(self, declared: LateLabels) -> None:
        """What is beyond the new limits leaves at once."""
        with self._lock:
            if declared.ttl_s != self._declared.ttl_s:  # by the new one an id's own time does not tell what happened
                self._early = self._next - 1
            self._declared = declared
            self._expire(self._clock())
            self._make_room(0)

    # -- predictions ------------------------------------------------------------------------------------------------

    def give(self, features_Bd: FeaturesBd, told: Sequence[str], *, client: str = "") -> list[str]:
        """Takes samples in, `told`: the best label of each; returns their ids. Of more than the capacity the first have
        ids, too, and do not wait."""
        rows = [row.tobytes() for row in self._scale.quantise(features_Bd)]
        with self._lock:
            now_s = self._clock()
            self._expire(now_s)
            self._make_room(len(rows))
            first = self._next
            self._next += len(rows)
            beyond = max(0, len(rows) - self._declared.capacity)
            self._leave_early(first + beyond - 1, beyond)
            for place in range(beyond, len(rows)):
                self._waiting[first + place] = (rows[place], now_s, told[place], client)
            return self._ids.seal(first, len(rows), int(now_s - self._began_s))

    # -- labels -----------------------------------------------------------------------------------------------------

    def refusal(self, batch: Derived) -> EverlearnError | None:
        """Fills in the features of a batch that names samples; or why it cannot be learned."""
        assert batch.sample_ids is not None
        with self._lock:
            now_s = self._clock()
            self._expire(now_s)
            numbers: dict[int, int] = {}
            for place, sample_id in enumerate(batch.sample_ids):
                opened = self._ids.open(sample_id)
                if opened is None or opened[0] not in self._waiting:
                    return self._not_here(opened, place, now_s)
                if opened[0] in numbers:
                    return InputError(
                        f"the same sample as ids[{numbers[opened[0]]}]; send one label of it", field=f"{FIELD}[{place}]"
                    )
                numbers[opened[0]] = place
            rows = [np.frombuffer(self._waiting[number][0], np.int16) for number in numbers]
        if rows:
            batch.features_Bd = self._scale.restore(np.stack(rows))
        return None

    def joined(self, sample_ids: Sequence[str], truth: Truth) -> None:
        """They were learned: each waits no more."""
        labels = None if isinstance(truth, LabelSets | Values) else truth
        with self._lock:
            now_s = self._clock()
            for place, sample_id in enumerate(sample_ids):
                opened = self._ids.open(sample_id)
                # What expired since the writer took the features was learned all the same.
                waited = self._waiting.pop(opened[0], None) if opened is not None else None
                if waited is None:
                    continue
                _, since_s, told, _ = waited
                self._joined += 1
                self._delays_s.append(now_s - since_s)
                self._correct += labels is not None and told == labels[place]

    def forget(self, client: str) -> None:
        """What a client asked about waits no more."""
        with self._lock:
            gone = [number for number, waiting in self._waiting.items() if waiting[3] == client]
            for number in gone:
                del self._waiting[number]
            if gone:
                self._leave_early(gone[-1], len(gone))

    # -- time -------------------------------------------------------------------------------------------------------

    def sweep(self) -> None:
        """Drops what has expired."""
        with self._lock:
            self._expire(self._clock())

    def tend(self) -> None:
        """On the event loop: sweeps now and then for as long as something waits, and keeps no room alive that its
        model has left."""
        if self._tended or not self._waiting:
            return
        self._tended = True
        every_s = min(max(self._declared.ttl_s / 10, _SHORTEST_S), _LONGEST_S)
        asyncio.get_running_loop().call_later(every_s, _tend_again, weakref.ref(self))

    def figures(self) -> LateFigures:
        """As they are now."""
        with self._lock:
            self._expire(self._clock())
            delays_s = np.array(self._delays_s)
            median_s, p90_s = (float(np.quantile(delays_s, at)) if len(delays_s) else None for at in (0.5, 0.9))
            return LateFigures(
                given=self._next,
                waiting=len(self._waiting),
                waiting_bytes=len(self._waiting) * 2 * len(self._scale.step_d),
                joined=self._joined,
                correct=self._correct,
                expired=self._expired,
                left_early=self._left_early,
                delay_median_s=median_s,
                delay_p90_s=p90_s,
            )

    def _expire(self, now_s: float) -> None:
        while self._waiting:
            oldest = next(iter(self._waiting))
            if now_s - self._waiting[oldest][1] < self._declared.ttl_s:
                return
            del self._waiting[oldest]
            self._expired += 1

    def _make_room(self, coming: int) -> None:
        beyond = len(self._waiting) + coming - self._declared.capacity
        for _ in range(min(beyond, len(self._waiting))):
            number, _ = self._waiting.popitem(last=False)
            self._leave_early(number, 1)

    def _leave_early(self, highest: int, count: int) -> None:
        if count:
            self._early = max(self._early, highest)
            self._left_early += count

    def _not_here(self, opened: tuple[int, int] | None, place: int, now_s: float) -> EverlearnError:
        reason = UNKNOWN
        message = (
            "no such sample was predicted since this server started or the model's backbone changed: what waits is in "
            "RAM alone"
        )
        if opened is not None and opened[0] < self._next:
            # Seconds in an id are rounded down, so what has expired is never said to be younger.
            age_s, ttl_s = now_s - self._began_s - opened[1], self._declared.ttl_s
            if age_s >= ttl_s:
                reason = EXPIRED
                message = f"the sample was predicted {age_s:,.0f} s ago, and waits {ttl_s:,} s (late_labels.ttl_s)"
            elif opened[0] <= self._early:
                reason = GONE
                message = (
                    f"the sample was learned already, or left before its time: {self._declared.capacity:,} wait at "
                    "most (late_labels.capacity), and those of an erased client not at all"
                )
            else:
                reason, message = LEARNED, "the sample's label came already, and is learned once"
        return PreconditionError(message, field=f"{FIELD}[{place}]", reason=reason)


def room_for(declared: LateLabels | None, scale: FeatureScale, present: WaitingRoom | None) -> WaitingRoom | None:
    """The room that a declaration wants: the present one where there is one."""
    if declared is None or present is None:
        return WaitingRoom(declared, scale) if declared is not None else None
    present.configure(declared)
    return present


def seated(room: WaitingRoom | None, batch: Derived) -> EverlearnError | None:
    """Fills in the features of a batch that names samples; or why it has none."""
    if batch.sample_ids is None:
        return None
    if room is None:
        return PreconditionError(
            "no predicted samples of this model wait; declare late_labels, or send the samples themselves",
            field=FIELD,
            reason=NONE_WAIT,
        )
    return room.refusal(batch)


def best_labels(scores_BC: npt.NDArray[np.float32], labels: Sequence[str]) -> list[str]:
    """Of each sample.

    >>> best_labels(np.array([[1, 3], [2, 0]], np.float32), ("cat", "dog"))
    ['dog', 'cat']
    """
    return [labels[column] for column in scores_BC.argmax(axis=1).tolist()]


def _tend_again(room: weakref.ref[WaitingRoom]) -> None:
    if (present := room()) is not None:
        present._tended = False
        present.sweep()
        present.tend()
