"""A model's student: learns beside the stream whatever it has time for, and never holds the stream up.

    a batch is derived --room?--> its pixels are kept in RAM --learned by the model--> waits here --> one step --> gone

At most a few batches are kept at a time; who finds no room is not learned by the student, and counted. Nothing of this
is part of `durable`: weights are checkpointed now and then, and what was learned since is lost with the server.

Axes: B samples in a batch, n values of an image, d features of the teacher.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
import weakref
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import numpy as np
import structlog

from everlearn.errors import EverlearnError
from everlearn.learners.student import Step, Student, StudentWeights
from everlearn.learners.trainer import TrainerSettings
from everlearn.spec.model import DistillTo
from everlearn.truth import Truth, single_labels
from everlearn.values import FeaturesBd, TrunkInput
from everlearn_server.engine.beside import Captured, forget
from everlearn_server.engine.serving import Snapshot
from everlearn_server.engine.trunks import LiveTrunk
from everlearn_server.store.rows import TrunkRow
from everlearn_server.store.store import Store

_logger = structlog.get_logger(__name__)
HELD: Final = 3
"""Batches whose pixels are kept: one that is learned, one that waits, one that is on its way."""
ROWS: Final = 64
"""Of a batch the student takes so many samples at most, which bounds what is kept."""
HURRY: Final = 3
"""While a batch waits, the one before it gets this part of its steps. Measured in a sixth of the time that 12 steps on
every batch take (test_resnet, 1,400 digits): 4 on every second batch, 39.5 % agreement; 12 on every sixth, 28.0 %
(`python -m tests.benchmarks student`)."""
_CHECKPOINT_EVERY_S: Final = 30.0
_LONGEST_REST_S: Final = 60.0
"""After failures in a row."""


@dataclass(kw_only=True)
class Figures:
    """What is known of a student, of samples that it was asked about before it learned them."""

    steps: int = 0
    samples: int = 0
    """Learned."""
    missed: int = 0
    """Samples that the model learned and the student had no time for."""
    tested: int = 0
    agreed: int = 0
    """To which it gave the model's label."""
    correct: int = 0
    loss: float = 0.0
    """Of the last step."""
    window: deque[int] = field(default_factory=deque)
    """Of the newest tested: 1 agreed + 2 correct."""

    @property
    def agreement(self) -> float:
        """Over the window; 0 where nothing was tested."""
        return sum(each & 1 for each in self.window) / max(len(self.window), 1)

    @property
    def accuracy(self) -> float:
        """Over the window; 0 where nothing was tested."""
        return sum(each >> 1 for each in self.window) / max(len(self.window), 1)

    def test(self, agreed: list[bool], correct: list[bool]) -> None:
        """Counts a batch."""
        self.tested += len(agreed)
        self.agreed += sum(agreed)
        self.correct += sum(correct)
        self.window.extend(int(a) + 2 * int(c) for a, c in zip(agreed, correct, strict=True))


@dataclass(frozen=True, kw_only=True)
class _Waiting:
    pixels: list[TrunkInput | None]
    features_Bd: FeaturesBd
    labels: tuple[str, ...]
    snapshot: Snapshot | None


class LiveStudent:
    """One model's student. Event loop only; the process is talked to in a thread of its own."""

    def __init__(
        self,
        *,
        model: str,
        uid: str,
        lineage: int,
        declared: DistillTo,
        trunk: LiveTrunk,
        teacher: LiveTrunk,
        store: Store,
        settings: TrainerSettings,
    ) -> None:
        """`trunk`: the student's, which is the pixels, with all of its network as tail."""
        assert trunk.tail is not None
        self.model = model
        self.declared = declared
        self.trunk = trunk
        self.teacher = teacher
        self.figures = Figures(window=deque(maxlen=declared.window))
        self.problem = ""
        """Why the last batch could not be learned; empty where it was."""
        self.released: tuple[int, int, int] | None = None
        """Steps, version of the teacher, and the student's own version, of the last release."""
        self._store = store
        self._key = checkpoint_key(uid)
        self._settings = settings
        self._belongs = {"lineage": lineage, "teacher": teacher.feature_digest, "student": trunk.tail.digest}
        self._student: Student | None = None
        self._held: weakref.WeakSet[Captured] = weakref.WeakSet()
        self._waiting: deque[_Waiting] = deque()
        self._learning: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"student-{model}")
        self._turn = asyncio.Lock()
        self._kept_steps = 0
        self._kept_at_s = time.monotonic()
        self._closed = False

    async def start(self) -> None:
        """Takes up the last checkpoint, unless it belongs to another teacher or student."""
        data = await self._checkpoint()
        assert self.trunk.tail is not None
        self._student = Student(
            self.trunk.tail, self.teacher.feature_dim, self.declared, data=data, settings=self._settings
        )

    async def stop(self, *, save: bool = True) -> None:
        """Ends after the step it is at; what waits is dropped."""
        self._closed = True
        self._waiting.clear()
        if self._learning is not None:
            await asyncio.gather(self._learning, return_exceptions=True)
        if save and self.figures.steps != self._kept_steps:
            try:
                await self.save()
            except EverlearnError as error:
                _logger.warning("a student was not saved", model=self.model, reason=error.reason)
        if self._student is not None:
            await asyncio.to_thread(self._student.close)
        self._thread.shutdown(wait=False)

    def room(self, samples: int) -> Captured | None:
        """What a batch's pixels are to be kept in; None where the student has no time for it."""
        is_learning = self._learning is not None and not self._learning.done()
        held = sum(captured.is_open for captured in self._held) + len(self._waiting) + is_learning
        if self._closed or held >= HELD or not samples:
            return None
        captured = Captured([None] * min(samples, ROWS))
        self._held.add(captured)
        return captured

    def offer(
        self, captured: Captured | None, features_Bd: FeaturesBd, labels: Truth, snapshot: Snapshot | None
    ) -> None:
        """A batch that the model has learned; `snapshot`: the version to compare with."""
        pixels = captured.take() if captured is not None else []
        self.figures.missed += len(features_Bd) - len(pixels)
        if self._closed or not pixels or any(each is None for each in pixels):
            return
        rows = len(pixels)
        self._waiting.append(
            _Waiting(
                pixels=pixels,
                features_Bd=features_Bd[:rows].copy(),
                labels=tuple(single_labels(labels))[:rows],
                snapshot=snapshot,
            )
        )
        if self._learning is None or self._learning.done():
            self._learning = asyncio.get_running_loop().create_task(self._learn(), name=f"student-{self.model}")

    async def weights(self) -> StudentWeights:
        """What would ship now; kept at rest too. Raises UnavailableError, DataLossError."""
        async with self._turn:
            assert self._student is not None
            return await asyncio.get_running_loop().run_in_executor(self._thread, self._student.weights)

    async def save(self) -> None:
        """A checkpoint. Raises as `weights`."""
        async with self._turn:
            assert self._student is not None
            data = await asyncio.get_running_loop().run_in_executor(self._thread, self._student.to_bytes)
            told = {**self._belongs, "figures": asdict(self.figures) | {"window": list(self.figures.window)}}
            digest = await self._store.blobs.put(data)
            await self._store.catalog.put_trunk(
                TrunkRow(
                    key=self._key,
                    digest=digest,
                    manifest=json.dumps(told).encode(),
                    source=f"student of {self.model}",
                    size=len(data),
                )
            )
            self._kept_steps, self._kept_at_s = self.figures.steps, time.monotonic()

    # -- inside -------------------------------------------------------------------------------------------------

    async def _checkpoint(self) -> bytes | None:
        row = await self._store.catalog.find_trunk(self._key)
        if row is None:
            return None
        try:
            told: dict[str, Any] = json.loads(row.manifest)
            if any(told[name] != value for name, value in self._belongs.items()):
                await forget(self._store, self._key)  # what it learned belongs to what was replaced
                return None
            data = await self._store.blobs.get(row.digest)
        except (EverlearnError, ValueError, KeyError) as error:
            _logger.warning("a student's checkpoint is lost; it begins anew", model=self.model, error=str(error))
            return None
        window = deque(told["figures"].pop("window"), maxlen=self.declared.window)
        self.figures = Figures(**told["figures"], window=window)
        self._kept_steps = self.figures.steps
        return data

    async def _learn(self) -> None:
        failures = 0
        while self._waiting and not self._closed:
            item = self._waiting.popleft()
            try:
                async with self._turn:
                    step, agreed, correct = await asyncio.get_running_loop().run_in_executor(
                        self._thread, self._step, item, steps_of(self.declared, len(self._waiting))
                    )
                failures, self.problem = 0, ""
                self.figures.steps, self.figures.samples, self.figures.loss = step.steps, step.samples, step.loss
                self.figures.test(agreed, correct)
                if time.monotonic() - self._kept_at_s > _CHECKPOINT_EVERY_S:
                    await self.save()
            except Exception as error:  # whatever it is, the model goes on without
                failures += 1
                self.problem = error.message if isinstance(error, EverlearnError) else type(error).__name__
                self.figures.missed += len(item.labels)
                _logger.warning("a student missed a batch", model=self.model, error=self.problem)
                await self._rest(min(2.0**failures, _LONGEST_REST_S))

    async def _rest(self, seconds: float) -> None:
        until_s = time.monotonic() + seconds
        while time.monotonic() < until_s and not self._closed:
            await asyncio.sleep(0.2)

    def _step(self, item: _Waiting, steps: int) -> tuple[Step, list[bool], list[bool]]:
        """In the thread: one batch, and the honest test of it."""
        assert self._student is not None
        pixels_Bn = np.concatenate([np.asarray(each, np.float32).reshape(1, -1) for each in item.pixels])
        step = self._student.learn(pixels_Bn, item.features_Bd, steps=steps)
        if item.snapshot is None or item.snapshot.feature_digest != self.teacher.feature_digest:
            return step, [], []
        head = item.snapshot.head
        theirs, ours = (head.scores(x_Bd).argmax(axis=1) for x_Bd in (item.features_Bd, step.predicted_Bd))
        correct = [head.labels[index] == label for index, label in zip(ours, item.labels, strict=True)]
        return step, (theirs == ours).tolist(), correct


def steps_of(declared: DistillTo, waiting: int) -> int:
    """On the next batch, where so many wait behind it."""
    return max(1, declared.steps // HURRY) if waiting else declared.steps


def student_of(beside: object) -> LiveStudent | None:
    """What learns beside a model, where that is a student."""
    return beside if isinstance(beside, LiveStudent) else None


def checkpoint_key(uid: str) -> str:
    """Where the student of a model lies among the trunks."""
    return hashlib.sha256(f"student of {uid}".encode()).hexdigest()
