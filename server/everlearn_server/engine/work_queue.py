"""The one bounded queue in front of the trunks: two lanes, a few worker threads, whole machine.

Predictions go first, learning always gets a share, and both are bounded: a full prediction lane answers
RESOURCE_EXHAUSTED with a hint when to come back, a full learning lane makes the stream wait (its credits run out).
On a CPU every image runs alone, because batching gains nothing there and a single image's features are
then bit-identical whoever else is asking. On a GPU a worker takes what waits, up to `max_batch`.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import structlog

from everlearn.errors import EverlearnError, ExpiredError, InputError, OverloadedError, UnavailableError
from everlearn.inputs.decoding import DecodingHere, ImageDecoding
from everlearn.runtime.session import join
from everlearn.values import FeaturesBd, TrunkInput
from everlearn_server.engine.trunk_times import TrunkTimes

_logger = structlog.get_logger(__name__)
_PREDICTIONS_IN_A_ROW = 4
"""After so many predictions one waiting learning image is taken."""


class Session(Protocol):
    """Runs prepared samples through a trunk; thread-safe."""

    def run(self, samples: TrunkInput) -> FeaturesBd:
        """[B, ...] -> float32 [B, d]."""
        ...


@dataclass(kw_only=True, eq=False)
class Work:
    """One request's images on their way through a trunk; rows of `features_Bd` fill as workers finish them."""

    session: Session
    pixels_of: Callable[[int], TrunkInput]
    """Decodes and prepares sample i: [1, ...] as the trunk takes it. Runs in a worker; may raise InputError."""
    features_Bd: FeaturesBd
    done: asyncio.Future[None]
    deadline_s: float | None
    """time.monotonic() after which nobody waits any more."""
    enqueued_s: float = field(default_factory=time.monotonic)
    started_s: float = 0.0
    decode_s: float = 0.0
    trunk_s: float = 0.0
    left: int = 0
    failed: bool = False


class WorkQueue:
    """Worker threads over two lanes. Call from the event loop; close from anywhere."""

    def __init__(
        self, *, workers: int, capacity_images: int, max_batch: int = 1, images: ImageDecoding | None = None
    ) -> None:
        """`images`: who reads image files for the workers; by default they do themselves."""
        self.images = images or DecodingHere()
        self._capacity_images = capacity_images
        self._max_batch = max_batch
        self._condition = threading.Condition()
        self._predict: deque[tuple[Work, int]] = deque()
        self._learn: deque[tuple[Work, int]] = deque()
        self._predictions_in_a_row = 0
        self._closed = False
        self._mean_s = 0.01
        self.times = TrunkTimes()
        """What an image has cost on each session."""
        self._workers = workers
        self._threads = [
            threading.Thread(target=self._work, name=f"trunk-{index}", daemon=True) for index in range(workers)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def depth(self) -> tuple[int, int]:
        """Images waiting: (predictions, learning)."""
        return len(self._predict), len(self._learn)

    async def predict(
        self, session: Session, pixels_of: Callable[[int], TrunkInput], count: int, dim: int, timeout_s: float | None
    ) -> Work:
        """Features of `count` images.

        Raises OverloadedError, ExpiredError, UnavailableError (closed), and what `pixels_of` raises.
        """
        waiting = len(self._predict)
        if waiting and waiting + count > self._capacity_images:
            retry_after_s = max(0.05, waiting * self._mean_s / self._workers)
            raise OverloadedError(
                f"{waiting} images wait already and {self._capacity_images} may; retry in {retry_after_s:.2f} s",
                retry_after_s=retry_after_s,
            )
        return await self._run(self._predict, session, pixels_of, count, dim, timeout_s)

    async def learn(self, session: Session, pixels_of: Callable[[int], TrunkInput], count: int, dim: int) -> Work:
        """Features of `count` images, after waiting for room in the lane. Raises what `pixels_of` raises."""
        while len(self._learn) > self._capacity_images and not self._closed:
            await asyncio.sleep(min(0.1, self._mean_s * len(self._learn) / self._workers / 2))
        return await self._run(self._learn, session, pixels_of, count, dim, None)

    def close(self) -> None:
        """Stops the workers after the image they are at; what waits is answered with UnavailableError."""
        with self._condition:
            self._closed = True
            waiting = {id(work): work for lane in (self._predict, self._learn) for work, _ in lane}
            self._predict.clear()
            self._learn.clear()
            self._condition.notify_all()
        for work in waiting.values():
            self._fail(work, _closed())
        for thread in self._threads:
            thread.join(timeout=5)
        self.images.close()

    async def _run(
        self,
        lane: deque[tuple[Work, int]],
        session: Session,
        pixels_of: Callable[[int], TrunkInput],
        count: int,
        dim: int,
        timeout_s: float | None,
    ) -> Work:
        loop = asyncio.get_running_loop()
        work = Work(
            session=session,
            pixels_of=pixels_of,
            features_Bd=np.empty((count, dim), np.float32),
            done=loop.create_future(),
            deadline_s=None if timeout_s is None else time.monotonic() + timeout_s,
            left=count,
        )
        if count == 0:
            return work
        with self._condition:
            if self._closed:
                raise _closed()
            lane.extend((work, index) for index in range(count))
            self._condition.notify(min(count, self._workers))
        try:
            await work.done
        except asyncio.CancelledError:
            work.failed = True  # nobody waits: workers drop what is left of it
            raise
        return work

    def _work(self) -> None:
        # No local variable: it would keep the last sample in memory for as long as nothing follows.
        while self._process(self._next()):
            pass

    def _next(self) -> list[tuple[Work, int]]:
        """What waits, once something does; nothing when the queue is closed."""
        with self._condition:
            while not self._predict and not self._learn and not self._closed:
                self._condition.wait()
            return [] if self._closed else self._take()

    def _take(self) -> list[tuple[Work, int]]:
        """Next images of one session; holds the lock."""
        learning_is_due = self._learn and self._predictions_in_a_row >= _PREDICTIONS_IN_A_ROW
        lane = self._learn if learning_is_due or not self._predict else self._predict
        self._predictions_in_a_row = self._predictions_in_a_row + 1 if lane is self._predict else 0
        items = [lane.popleft()]
        while len(items) < self._max_batch and lane and lane[0][0].session is items[0][0].session:
            items.append(lane.popleft())
        return items

    def _process(self, items: list[tuple[Work, int]]) -> bool:
        """False for nothing: the worker ends."""
        if not items:
            return False
        started_s = time.monotonic()
        ready: list[tuple[Work, int]] = []
        pixels: list[TrunkInput] = []
        for work, index in items:
            if work.failed:
                continue
            if work.deadline_s is not None and started_s > work.deadline_s:
                waited_s = started_s - work.enqueued_s
                self._fail(work, ExpiredError(f"the deadline passed after {waited_s:.2f} s in the queue"))
                continue
            work.started_s = work.started_s or started_s
            begun_s = time.monotonic()
            try:
                pixels.append(work.pixels_of(index))
            except EverlearnError as error:
                self._fail(work, error)
                continue
            except Exception as error:  # a decoder's own bug, or no memory for it: this sample is refused, no other
                _logger.error("decoding failed", kind=type(error).__qualname__)
                self._fail(work, InputError(f"a sample cannot be decoded ({type(error).__name__})", field="samples"))
                continue
            work.decode_s += time.monotonic() - begun_s
            ready.append((work, index))
        if ready:
            self._run_trunk(ready, pixels)
            self._mean_s += 0.05 * ((time.monotonic() - started_s) / len(items) - self._mean_s)
        return True

    def _run_trunk(self, ready: list[tuple[Work, int]], pixels: list[TrunkInput], *, may_halve: bool = True) -> None:
        begun_s = time.monotonic()
        try:
            features_Bd = ready[0][0].session.run(join(pixels))
            for row, (work, index) in enumerate(ready):
                work.features_Bd[index] = features_Bd[row]
        except Exception as error:  # answered to the callers; a worker never dies
            half = len(ready) // 2
            if half and may_halve:  # a device may have no memory for all of them at once
                for part in (slice(0, half), slice(half, len(ready))):
                    self._run_trunk(ready[part], pixels[part], may_halve=False)
                return
            for work, _ in ready:
                self._fail(work, error)
            return
        each_s = (time.monotonic() - begun_s) / len(ready)
        self.times.note(ready[0][0].session, each_s, len(ready))
        for work, _ in ready:
            work.trunk_s += each_s
        self._finish([work for work, _ in ready])

    def _finish(self, works: list[Work]) -> None:
        with self._condition:
            finished = []
            for work in works:
                work.left -= 1
                if work.left == 0:
                    finished.append(work)
        for work in finished:
            _call_soon(work.done, _resolve, work.done, None)

    def _fail(self, work: Work, error: BaseException) -> None:
        work.failed = True
        _call_soon(work.done, _resolve, work.done, error)


def _closed() -> UnavailableError:
    return UnavailableError("the server is stopping; reconnect")


def _resolve(done: asyncio.Future[None], error: BaseException | None) -> None:
    if done.done():  # cancelled, or failed by another image of the same request
        return
    if error is None:
        done.set_result(None)
    else:
        done.set_exception(error)


def _call_soon(done: asyncio.Future[None], callback: Callable[..., None], *arguments: object) -> None:
    loop = done.get_loop()
    if not loop.is_closed():
        loop.call_soon_threadsafe(callback, *arguments)
