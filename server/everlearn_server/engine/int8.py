"""A model's graph in 8 bits: ranges are learned beside the stream, graphs tried beside the server, the good one ships.

    a batch is derived --room?--> some of its pixels are kept in RAM --learned by the model--> looked at here --> gone

The first 64 images are looked at, until enough is known of a graph every image that there is time for, and then one in
32: a pass with the extremes of every activation, twice the time of the trunk's own, and a pass of each graph in 8
bits. Each time the images have doubled another graph is made of their ranges; the one before it ships until the new one
has shown itself. Nothing of this is part of `durable`: what was looked at since the last checkpoint is lost with the
server.

Axes: B samples, T tensors.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
import structlog

from everlearn.errors import EverlearnError, GateError, PreconditionError
from everlearn.export.card_precision import Evidence
from everlearn.export.int8 import Plan, observer, plan, quantised, rounded
from everlearn.export.ranges import RangeSketch
from everlearn.runtime.session import CPU, TrunkSession, open_session, session_options
from everlearn.spec.int8_export import OBSERVED, SHARE, Int8Export
from everlearn.truth import Truth, single_labels
from everlearn.values import FeaturesBd, Trunk, TrunkInput
from everlearn_server.engine.beside import Captured, forget
from everlearn_server.engine.serving import Snapshot
from everlearn_server.store.rows import TrunkRow
from everlearn_server.store.store import Store

_logger = structlog.get_logger(__name__)
HELD: Final = 2
"""Batches whose pixels are kept: one that is looked at, one that is on its way."""
ROWS: Final = 16
"""Of a batch, at most."""
_CHECKPOINT_EVERY_S: Final = 30.0


@dataclass(kw_only=True, eq=False)
class Graph:
    """One graph in 8 bits, and what it has shown. Ranges are what is kept of it: the rest follows from them."""

    ranges: dict[str, tuple[float, float]]
    observed: int
    """Images that they are from."""
    window: deque[tuple[bool, bool]]
    """Of each tested sample: right in 8 bits, right in fp32."""
    trunk: Trunk
    """In 8 bits; front and scale are the model's."""
    session: TrunkSession

    def evidence(self, max_drop: float) -> Evidence:
        """What it has shown; nothing was tested where `tested` is 0."""
        tested = len(self.window)
        right, fp32_right = (sum(each[which] for each in self.window) for which in (0, 1))
        return Evidence(
            tested=tested,
            accuracy=right / max(tested, 1),
            fp32_accuracy=fp32_right / max(tested, 1),
            max_drop=max_drop,
            observed=self.observed,
        )

    def is_good(self, declared: Int8Export) -> bool:
        """Whether it may leave."""
        shown = self.evidence(declared.max_drop)
        return shown.tested >= declared.min_tested and shown.fp32_accuracy - shown.accuracy <= declared.max_drop


@dataclass(frozen=True, kw_only=True)
class Standing:
    """How far 8 bits are."""

    seen: int
    """Images that ranges were counted over."""
    evidence: Evidence | None
    """Of the graph that ships, or where none does of the newest; None before the first."""
    missing: str
    """Why none may leave now, in words; empty where one may."""


@dataclass(frozen=True, kw_only=True)
class _Waiting:
    pixels: list[TrunkInput]
    features_Bd: FeaturesBd
    labels: tuple[str, ...]
    snapshot: Snapshot | None
    """That served before the model learned them."""


@dataclass(eq=False)
class _Captured(Captured):
    snapshot: Snapshot | None = field(default=None, kw_only=True)


class LiveInt8:
    """Of one model. Event loop only; graphs are made and run in a thread of its own. Implements `beside.Beside`."""

    def __init__(
        self,
        *,
        model: str,
        uid: str,
        lineage: int,
        declared: Int8Export,
        of: Trunk,
        live: Callable[[], Snapshot | None],
        store: Store,
    ) -> None:
        """`of`: the model's own trunk; `live`: its latest version."""
        self.trunk = None
        self.problem = ""
        """Why the last batch could not be looked at; empty where it was."""
        self._model, self._declared, self._of, self._live, self._store = model, declared, of, live, store
        self._key = ranges_key(uid)
        self._belongs = {"lineage": lineage, "trunk": of.digest}
        self._plan: Plan | None = None
        self._observer: Any = None
        self._sketch = RangeSketch(())
        self._shipped: Graph | None = None
        self._tried: Graph | None = None
        self._held: weakref.WeakSet[Captured] = weakref.WeakSet()
        self._waiting: deque[_Waiting] = deque()
        self._working: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"int8-{model}")
        self._passed_by = 0
        self._kept_at_s = time.monotonic()
        self._is_kept = True
        self._closed = False

    async def start(self) -> None:
        """Takes up what was kept, unless it belongs to another trunk. Raises BackboneError where the trunk has
        nothing to quantise."""
        row = await self._store.catalog.find_trunk(self._key)
        data: bytes | None = None
        if row is not None:
            try:
                told = json.loads(row.manifest)
                if any(told[name] != value for name, value in self._belongs.items()):
                    await forget(self._store, self._key)
                else:
                    data = await self._store.blobs.get(row.digest)
            except (EverlearnError, ValueError, KeyError) as error:
                _logger.warning("ranges are lost; they are learned anew", model=self._model, error=str(error))
        await asyncio.get_running_loop().run_in_executor(self._thread, self._open, data)

    async def stop(self, *, save: bool = True) -> None:
        """Ends after the batch it is at; what waits is dropped."""
        self._closed = True
        self._waiting.clear()
        if self._working is not None:
            await asyncio.gather(self._working, return_exceptions=True)
        if save and not self._is_kept:
            try:
                await self._save()
            except EverlearnError as error:
                _logger.warning("ranges were not saved", model=self._model, reason=error.reason)
        self._thread.shutdown(wait=False)

    def room(self, samples: int) -> Captured | None:
        """What some of a batch's pixels are to be kept in; None where none are wanted, or there is no time for them."""
        self._passed_by += samples
        wanted = min(samples, ROWS)
        if self._knows_enough():
            wanted = min(wanted, self._passed_by // SHARE)
        is_working = self._working is not None and not self._working.done()
        held = sum(captured.is_open for captured in self._held) + len(self._waiting) + is_working
        if self._closed or self._observer is None or not wanted or held >= HELD:
            return None
        self._passed_by = 0
        captured = _Captured([None] * wanted, snapshot=self._live())
        self._held.add(captured)
        return captured

    def offer(
        self, captured: Captured | None, features_Bd: FeaturesBd, labels: Truth, snapshot: Snapshot | None
    ) -> None:
        """A batch that the model has learned. The version that served before tests it: `snapshot` may know it."""
        pixels = captured.take() if captured is not None else []
        kept = [each for each in pixels if each is not None]
        if self._closed or not kept or len(kept) < len(pixels):
            return
        assert isinstance(captured, _Captured)
        rows = len(kept)
        self._waiting.append(
            _Waiting(
                pixels=kept,
                features_Bd=features_Bd[:rows].copy(),
                labels=tuple(single_labels(labels))[:rows],
                snapshot=captured.snapshot,
            )
        )
        if self._working is None or self._working.done():
            self._working = asyncio.get_running_loop().create_task(self._work(), name=f"int8-{self._model}")

    def released(self, feature_digest: str) -> tuple[Graph, Evidence]:
        """The graph that may leave now, under a head over those features. Raises GateError, which says what is missing,
        PreconditionError for a head on another backbone."""
        if feature_digest != self._of.feature_digest:
            raise PreconditionError(
                "the version is of another backbone than the one that int8 is prepared for; take a later one",
                field="version",
                reason="NO_INT8",
            )
        graph = self._shipped
        if graph is not None and graph.is_good(self._declared):
            return graph, graph.evidence(self._declared.max_drop)
        raise GateError(self._missing())

    @property
    def standing(self) -> Standing:
        """How far it is."""
        graph = self._shipped or self._tried
        released = self._shipped is not None and self._shipped.is_good(self._declared)
        return Standing(
            seen=self._sketch.samples,
            evidence=graph.evidence(self._declared.max_drop) if graph is not None else None,
            missing="" if released else self._missing(),
        )

    # -- inside -------------------------------------------------------------------------------------------------

    def _missing(self) -> str:
        graph = self._tried or self._shipped
        if graph is None:
            return (
                f"ranges for int8 were learned from {self._sketch.samples} images; {OBSERVED} are needed, so stream "
                f"more (images, not features){self._because()}"
            )
        shown = graph.evidence(self._declared.max_drop)
        if shown.tested < self._declared.min_tested:
            return (
                f"the graph in 8 bits was tested on {shown.tested} labelled samples; {self._declared.min_tested} are "
                f"needed, so stream more (images, not features){self._because()}"
            )
        return (
            f"in 8 bits {100 * shown.accuracy:.1f} % of {shown.tested} samples are right, in fp32 "
            f"{100 * shown.fp32_accuracy:.1f} %: more than int8_export.max_drop {shown.max_drop:g} apart"
        )

    def _because(self) -> str:
        return f"; the last batch could not be looked at: {self.problem}" if self.problem else ""

    def _knows_enough(self) -> bool:
        graph = self._tried or self._shipped
        return graph is not None and len(graph.window) >= self._declared.min_tested

    async def _work(self) -> None:
        while self._waiting and not self._closed:
            item = self._waiting.popleft()
            try:
                await asyncio.get_running_loop().run_in_executor(self._thread, self._look_at, item)
                self.problem, self._is_kept = "", False
                if time.monotonic() - self._kept_at_s > _CHECKPOINT_EVERY_S:
                    await self._save()
            except Exception as error:  # whatever it is, the model goes on without
                self.problem = error.message if isinstance(error, EverlearnError) else type(error).__name__
                _logger.warning("a batch was not looked at for int8", model=self._model, error=self.problem)

    async def _save(self) -> None:
        data = await asyncio.get_running_loop().run_in_executor(self._thread, self._to_bytes)
        digest = await self._store.blobs.put(data)
        row = TrunkRow(
            key=self._key,
            digest=digest,
            manifest=json.dumps(self._belongs).encode(),
            source=f"ranges of {self._model}",
            size=len(data),
        )
        await self._store.catalog.put_trunk(row)
        self._is_kept, self._kept_at_s = True, time.monotonic()

    # -- in the thread ------------------------------------------------------------------------------------------

    def _open(self, data: bytes | None) -> None:
        self._plan = plan(self._of.onnx)
        self._sketch = RangeSketch(self._plan.tensors)
        options = session_options(1)
        # An arena keeps what it frees, unwiped.
        options.enable_cpu_mem_arena = False
        self._observer = open_session(observer(self._plan), options, (CPU,), what="the observer of ranges")
        if data is None:
            return
        try:
            self._take_up(data)
        except (EverlearnError, ValueError, KeyError, TypeError) as error:
            self._sketch, self._shipped, self._tried = RangeSketch(self._plan.tensors), None, None
            _logger.warning("ranges are lost; they are learned anew", model=self._model, error=str(error))

    def _look_at(self, item: _Waiting) -> None:
        """One batch: tested first, then seen."""
        assert self._plan is not None
        self._test(item)
        for pixels in item.pixels:
            self._sketch.add(self._observer.run(["extremes"], {"pixels": np.asarray(pixels)})[0])
        newest = self._tried or self._shipped
        if self._sketch.samples >= (OBSERVED if newest is None else 2 * newest.observed):
            self._tried = self._graph(self._sketch.ranges(), self._sketch.samples)

    def _test(self, item: _Waiting) -> None:
        if item.snapshot is None or item.snapshot.feature_digest != self._of.feature_digest:
            return
        fp32 = _right(item.snapshot, item.features_Bd, item.labels)
        ours = replace(item.snapshot, head=rounded(item.snapshot.head))
        for graph in (self._tried, self._shipped):
            if graph is not None:
                features_Bd = np.concatenate([graph.session.run(np.asarray(pixels)) for pixels in item.pixels])
                graph.window.extend(zip(_right(ours, features_Bd, item.labels), fp32, strict=True))
        if self._tried is not None and self._tried.is_good(self._declared):
            self._shipped, self._tried = self._tried, None

    def _graph(self, ranges: dict[str, tuple[float, float]], observed: int) -> Graph:
        assert self._plan is not None
        trunk = replace(self._of, onnx=quantised(self._plan, ranges))
        window: deque[tuple[bool, bool]] = deque(maxlen=self._declared.window)
        return Graph(
            ranges=ranges, observed=observed, window=window, trunk=trunk, session=TrunkSession(trunk.onnx, arena=False)
        )

    def _to_bytes(self) -> bytes:
        graphs = {"shipped": self._shipped, "tried": self._tried}
        told = {
            name: {"ranges": graph.ranges, "observed": graph.observed, "window": list(graph.window)}
            for name, graph in graphs.items()
            if graph is not None
        }
        head = json.dumps(told).encode()
        return len(head).to_bytes(8, "little") + head + self._sketch.to_bytes()

    def _take_up(self, data: bytes) -> None:
        assert self._plan is not None
        size = int.from_bytes(data[:8], "little")
        told = json.loads(data[8 : 8 + size])
        sketch = RangeSketch.from_bytes(data[8 + size :])
        if sketch.tensors != self._plan.tensors:
            raise PreconditionError("they are of another release's tensors")
        graphs: dict[str, Graph] = {}
        for name, kept in told.items():
            ranges = {tensor: (float(low), float(high)) for tensor, (low, high) in kept["ranges"].items()}
            graphs[name] = self._graph(ranges, int(kept["observed"]))
            graphs[name].window.extend((bool(ours), bool(fp32)) for ours, fp32 in kept["window"])
        self._sketch, self._shipped, self._tried = sketch, graphs.get("shipped"), graphs.get("tried")


def _right(snapshot: Snapshot, features_Bd: FeaturesBd, labels: tuple[str, ...]) -> list[bool]:
    """Whether each sample's answer is its label; one that is not known is none."""
    best_B = snapshot.scores(features_Bd).argmax(axis=1)
    novelty_B = snapshot.novelty(features_Bd)
    known_B = np.ones(len(best_B), bool) if novelty_B is None else novelty_B <= 1
    names = snapshot.head.labels
    return [bool(known) and names[best] == label for best, known, label in zip(best_B, known_B, labels, strict=True)]


def released_by(beside: object, model: str, feature_digest: str) -> tuple[Graph, Evidence]:
    """The graph in 8 bits that a model may ship now. Raises PreconditionError (NO_INT8) where it declares none, and as
    `LiveInt8.released`."""
    if not isinstance(beside, LiveInt8):
        raise PreconditionError(
            f"model {model!r} prepares no export in 8 bits; declare int8_export for that",
            field="precision",
            reason="NO_INT8",
        )
    return beside.released(feature_digest)


def ranges_key(uid: str) -> str:
    """Where the ranges of a model lie among the trunks."""
    return hashlib.sha256(f"ranges of {uid}".encode()).hexdigest()
