"""What a device sends of all that it sees: only what it is unsure of, not twice the same, no more than it may.

Pure: no IO, and time only by the clock that is handed over (seconds that never run backwards).

Axes: C classes, H W pixels, d features.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from everlearn_client._retry import JITTER
from everlearn_client.edge.thumbnails import MIN_PX
from everlearn_client.errors import InvalidArgument

SecondsClock = Callable[[], float]
DAY_S: Final = 86_400.0
_HASH_SIDE: Final = 8
_AFTER_START_S: Final = 3_600.0
"""Share of a day's bytes that a device has when it starts: one that restarts again and again stays near its budget."""

Why = Literal["send", "sure", "duplicate", "rate"]
"""Of a decision."""


@dataclass(frozen=True, kw_only=True)
class SendPolicy:
    """Declared by the device's owner; the defaults send all that is new."""

    only_unsure: bool = False
    """Leave out samples of which the model is sure (see `margin_below`, `entropy_above`)."""
    margin_below: float = 0.2
    """Unsure where the best two probabilities are closer than this."""
    entropy_above: float | None = None
    """Unsure, instead, where the entropy of the probabilities is above this share of its maximum, in (0, 1)."""
    temperature: float = 1.0
    """Scores are divided by it before they become probabilities. A ridge head's lie near 0..1: use about 0.1 there."""
    samples_per_hour: float | None = None
    """Of a token bucket that holds an hour's; None for no limit."""
    duplicate_bits: int | None = 3
    """Images whose 63-bit hashes differ in so many bits at most are one; None to send all."""
    duplicate_cosine: float = 0.999
    """Vectors with at least this cosine are one, where `duplicate_bits` is set."""
    duplicate_window: int = 256
    """Samples that are remembered."""
    bytes_per_day: float | None = None
    """Up the line; None for no limit."""
    send: Literal["sample", "thumbnail", "features"] = "sample"
    """What of a sample is kept and sent: itself, or only its features, computed here by the shipped trunk. Then nothing
    of it lies on the disk or leaves the device, and nothing is taught before there is a model. Some kilobytes each,
    and personal data all the same where samples are: parts of a picture can be guessed from its features. A thumbnail
    is the image made smaller, as a PNG file: lossless from there on, and readable without the model."""
    thumbnail_px: int | None = None
    """Longer side of a thumbnail. None for what the model's front resizes an image to anyway: then nothing is taught
    before there is a model."""
    when_metered: Literal["wait", "send"] = "wait"
    """Whether anything is sent while the connection costs money."""

    def __post_init__(self) -> None:
        checks = {
            "margin_below": 0 < self.margin_below <= 1,
            "entropy_above": self.entropy_above is None or 0 < self.entropy_above < 1,
            "temperature": self.temperature > 0,
            "samples_per_hour": self.samples_per_hour is None or self.samples_per_hour > 0,
            "duplicate_bits": self.duplicate_bits is None or 0 <= self.duplicate_bits < 32,
            "duplicate_cosine": 0 < self.duplicate_cosine <= 1,
            "duplicate_window": self.duplicate_window >= 1,
            "bytes_per_day": self.bytes_per_day is None or self.bytes_per_day > 0,
            "send": self.send in ("sample", "thumbnail", "features"),
            "thumbnail_px": self.thumbnail_px is None or (self.send == "thumbnail" and self.thumbnail_px >= MIN_PX),
            "when_metered": self.when_metered in ("wait", "send"),
        }
        for name, right in checks.items():
            if not right:
                raise InvalidArgument(f"{name} is {getattr(self, name)!r}; see SendPolicy.{name}", field=name)


class TokenBucket:
    """So many an hour on average, and at once no more than the bucket holds."""

    def __init__(self, *, per_s: float, holds: float, filled: float, clock_s: SecondsClock) -> None:
        self._per_s, self._holds, self._filled = per_s, holds, filled
        self._clock_s, self._at_s = clock_s, clock_s()

    def take(self, amount: float) -> bool:
        """Takes it all or, where there is less, nothing. More than the bucket holds needs a full one, and leaves a
        debt."""
        if self.wait_s(amount) > 0:
            return False
        self._filled -= amount
        return True

    def wait_s(self, amount: float) -> float:
        """Seconds until `take` would."""
        now_s = self._clock_s()
        self._filled = min(self._holds, self._filled + max(0.0, now_s - self._at_s) * self._per_s)
        self._at_s = max(self._at_s, now_s)
        missing = min(amount, self._holds) - self._filled
        # A rounding error of the clock is no reason to wait.
        return missing / self._per_s if missing > 1e-9 * self._holds else 0.0


class Chooser:
    """Decides, sample by sample, what is worth sending, and counts what became of the rest."""

    def __init__(self, policy: SendPolicy, clock_s: SecondsClock) -> None:
        self._policy = policy
        self._rate: TokenBucket | None = None
        if policy.samples_per_hour is not None:
            hourly = policy.samples_per_hour
            holds = max(1.0, hourly)
            self._rate = TokenBucket(per_s=hourly / 3600, holds=holds, filled=holds, clock_s=clock_s)
        self._seen = Seen(policy)
        self.counts: dict[Why, int] = dict.fromkeys(("send", "sure", "duplicate", "rate"), 0)

    def decide(
        self, *, scores_C: npt.NDArray[np.floating] | None, sample: npt.NDArray[np.generic] | None, label: str = ""
    ) -> Why:
        """`scores_C`: the model's; None where there is no model yet, which is unsure of everything. `sample`: uint8
        [H, W, 3] or any floats; None where it cannot be compared. The same picture under another label is new.
        """
        why = self._why(scores_C, sample, label)
        self.counts[why] += 1
        return why

    def _why(
        self, scores_C: npt.NDArray[np.floating] | None, sample: npt.NDArray[np.generic] | None, label: str
    ) -> Why:
        if self._policy.only_unsure and scores_C is not None and not is_unsure(scores_C, self._policy):
            return "sure"
        compares = sample is not None and self._policy.duplicate_bits is not None
        if compares and sample is not None and self._seen.holds(sample, label):
            return "duplicate"
        if self._rate is not None and not self._rate.take(1):
            return "rate"
        if compares and sample is not None:
            self._seen.add(sample, label)
        return "send"


class Seen:
    """The newest samples that were sent, as hashes or unit vectors."""

    def __init__(self, policy: SendPolicy) -> None:
        self._bits, self._cosine = policy.duplicate_bits or 0, policy.duplicate_cosine
        self._window = policy.duplicate_window
        self._kept: OrderedDict[str, deque[int | npt.NDArray[np.float64]]] = OrderedDict()
        self._order: deque[str] = deque()

    def holds(self, sample: npt.NDArray[np.generic], label: str) -> bool:
        """Whether one like it was sent under this label."""
        sign = self._sign(sample)
        return any(self._alike(sign, each) for each in self._kept.get(label, ()))

    def add(self, sample: npt.NDArray[np.generic], label: str) -> None:
        """Remembers it; the oldest is forgotten for it."""
        self._kept.setdefault(label, deque()).append(self._sign(sample))
        self._order.append(label)
        if len(self._order) > self._window:
            oldest = self._order.popleft()
            self._kept[oldest].popleft()
            if not self._kept[oldest]:
                del self._kept[oldest]

    def _sign(self, sample: npt.NDArray[np.generic]) -> int | npt.NDArray[np.float64]:
        return picture_hash(sample) if sample.dtype == np.uint8 else _unit(sample)

    def _alike(self, a: int | npt.NDArray[np.float64], b: int | npt.NDArray[np.float64]) -> bool:
        if isinstance(a, int) and isinstance(b, int):
            return (a ^ b).bit_count() <= self._bits
        if isinstance(a, int) or isinstance(b, int) or a.shape != b.shape:
            return False
        return float(a @ b) >= self._cosine


def is_unsure(scores_C: npt.NDArray[np.floating], policy: SendPolicy) -> bool:
    """By the softmax of the scores; scores that are not numbers make it unsure, and fewer than two classes, too."""
    scaled_C = np.asarray(scores_C, np.float64).reshape(-1) / policy.temperature
    if len(scaled_C) < 2 or not np.isfinite(scaled_C).all():
        return True
    share_C = np.exp(scaled_C - scaled_C.max())
    share_C /= share_C.sum()
    if policy.entropy_above is not None:
        entropy = -float(np.sum(share_C * np.log(np.maximum(share_C, 1e-300)))) / math.log(len(share_C))
        return entropy > policy.entropy_above
    second, best = np.partition(share_C, -2)[-2:]
    return float(best - second) < policy.margin_below


def picture_hash(image: npt.NDArray[np.generic]) -> int:
    """63 bits that stay nearly the same when a picture is scaled, re-encoded, or a little brighter.

    The signs of the lowest frequencies of a grey thumbnail, against their median (Zauner 2010, "Implementation and
    Benchmarking of Perceptual Image Hash Functions", pHash). `image`: uint8 [H, W] or [H, W, 3].
    """
    grey_HW = np.asarray(image, np.float64)
    if grey_HW.ndim == 3:
        grey_HW = grey_HW.mean(axis=2)
    side = 4 * _HASH_SIDE
    thumb = _averaged(_averaged(grey_HW, side).T, side).T
    basis = _cosines(side)
    low = (basis @ thumb @ basis.T).reshape(-1)[1:]  # without the mean: brightness is no difference
    bits = low > np.median(low)
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def _averaged(values: npt.NDArray[np.float64], count: int) -> npt.NDArray[np.float64]:
    """Rows averaged into `count`; fewer rows are repeated."""
    edges = np.linspace(0, len(values), count + 1)
    first = np.minimum(edges[:-1].astype(int), len(values) - 1)
    last = np.maximum(np.ceil(edges[1:]).astype(int), first + 1)
    sums = np.concatenate([np.zeros((1, values.shape[1])), np.cumsum(values, axis=0)])
    means: npt.NDArray[np.float64] = (sums[last] - sums[first]) / (last - first)[:, None]
    return means


def _cosines(side: int) -> npt.NDArray[np.float64]:
    """The first rows of a discrete cosine transform."""
    frequency, place = np.arange(_HASH_SIDE)[:, None], np.arange(side)[None, :]
    rows: npt.NDArray[np.float64] = np.cos(np.pi * frequency * (2 * place + 1) / (2 * side))
    return rows


def _unit(sample: npt.NDArray[np.generic]) -> npt.NDArray[np.float64]:
    vector = np.asarray(sample, np.float64).reshape(-1)
    unit: npt.NDArray[np.float64] = vector / max(float(np.linalg.norm(vector)), 1e-30)
    return unit


class Allowance:
    """When the line may be used, and for how many bytes."""

    def __init__(
        self, policy: SendPolicy, clock_s: SecondsClock, *, metered: Callable[[], bool] = lambda: False
    ) -> None:
        """`metered`: whether the connection costs money right now."""
        self._waits, self._metered = policy.when_metered == "wait", metered
        self._bucket: TokenBucket | None = None
        if policy.bytes_per_day is not None:
            per_s = policy.bytes_per_day / DAY_S
            self._bucket = TokenBucket(
                per_s=per_s, holds=policy.bytes_per_day, filled=per_s * _AFTER_START_S, clock_s=clock_s
            )

    @property
    def is_open(self) -> bool:
        """Whether the line may be used at all."""
        return not (self._waits and self._metered())

    def take(self, size_bytes: int) -> bool:
        """Whether so much may be sent now; it is counted if so."""
        return self.is_open and (self._bucket is None or self._bucket.take(size_bytes))

    def wait_s(self, size_bytes: int) -> float:
        """Seconds until the day's bytes allow it."""
        return 0.0 if self._bucket is None else self._bucket.wait_s(size_bytes)


class BackOff:
    """Longer and longer pauses while nothing succeeds; they differ from device to device, so that a fleet whose server
    comes back does not come all at once."""

    def __init__(
        self, *, longest_s: float, first_s: float = 1.0, uniform: Callable[[float, float], float] = JITTER.uniform
    ) -> None:
        self._first_s, self._longest_s, self._uniform = first_s, longest_s, uniform
        self._failures = 0

    def succeeded(self) -> None:
        """The next failure is the first again."""
        self._failures = 0

    def failed(self, *, at_least_s: float = 0.0) -> float:
        """Seconds to wait. `at_least_s`: what the server asked for."""
        pause_s = min(self._longest_s, self._first_s * 2.0 ** min(self._failures, 60))
        self._failures += 1
        return max(at_least_s, pause_s * self._uniform(0.5, 1.0))
