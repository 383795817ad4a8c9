"""A new head into the running server: how long the swap takes, and what predictions notice of it.

In process: the very call that the publisher makes with a solved head (`LiveModel._install`: version number, gate,
record, one reference assignment), at 100 heads a second while requests run through the shared queue, once with and once
without, alternating; and 1,000 heads of 100 classes while eight callers keep the machine busy. Through a real server:
predictions while another client streams and every batch brings a new head, so that the solves are in it too.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field, replace

import numpy as np
from tests.benchmarks.embedded import engine, learn
from tests.benchmarks.scene import DIM, Scene, child, clustered_features
from tests.benchmarks.table import Row, quantiles

from everlearn.errors import EverlearnError
from everlearn.export.parity import head_parity
from everlearn.heads import head_for
from everlearn.inputs.samples import Pixels
from everlearn.learners.base import Solution
from everlearn.sums import Sums
from everlearn_client import Features as ClientFeatures
from everlearn_client import Pixels as ClientPixels
from everlearn_server.engine.engine import Engine
from everlearn_server.engine.head_file import dump_solution
from everlearn_server.engine.live_model import LiveModel
from everlearn_server.engine.publisher import Solved, probe_features

SIZE = 224
HEADS_A_SECOND = 100
CALLERS, WIDE, SWAPS = 8, 100, 1000
TARGET_MS = 2.0


def measure(scene: Scene, *, quick: bool) -> list[Row]:
    """The swap itself, requests beside swaps, requests beside a learning stream."""
    rows = asyncio.run(_in_process(scene, seconds=2.0 if quick else 6.0, repetitions=1 if quick else 3))
    return [*rows, _through_server(scene, requests=50 if quick else 600)]


async def _in_process(scene: Scene, *, seconds: float, repetitions: int) -> list[Row]:
    random = np.random.default_rng(0)
    async with engine(scene.folder / "swap", scene.declaration("lite0", SIZE)) as (running, model):
        labels = [row % 10 for row in range(320)]
        first = (clustered_features(random, labels, DIM), tuple(str(label) for label in labels))
        await learn(running, model, [first])
        swaps_ms = {classes: await _swaps_ms(model, _solved(model, classes)) for classes in (10, 100, 1000)}
        quiet: list[float] = []
        swapping: list[float] = []
        for _ in range(repetitions):
            scene.tell("requests without and with 100 swaps a second")
            quiet += await _latencies_ms(running, model, seconds, solved=None)
            swapping += await _latencies_ms(running, model, seconds, solved=_solved(model, 10))
        scene.tell("the trunk alone")
        bare = _bare_ms(scene, seconds * repetitions)
        loads = [_Load(), _Load()]
        for _ in range(repetitions):
            for load, solved in zip(loads, (None, _solved(model, WIDE)), strict=True):
                scene.tell(f"{CALLERS} callers, {'with' if solved else 'without'} swaps")
                await load.run(running, model, solved, swaps=-(-SWAPS // repetitions), seconds=4 * seconds)
    return [_swap_row(swaps_ms), _latency_row(bare, quiet, swapping), _load_row(*loads)]


def _solved(model: LiveModel, classes: int) -> Solved:
    """A head over `classes` classes, as the publisher hands it over."""
    random = np.random.default_rng(classes)
    labels = [row % classes for row in range(2 * classes)]
    sums = Sums(DIM)
    scale = model.ready_trunk.scale
    sums.add(scale.quantise(np.abs(random.standard_normal((len(labels), DIM))).astype(np.float32)), [*map(str, labels)])
    head = head_for("balanced_ridge").solve(sums, scale, hint=0.1)
    return Solved(
        head=head,
        tails={"bench": 1},
        sample_count=sums.samples,
        samples_C=tuple(int(count) for count in sums.count_C),
        memory_digest="",
        exact=False,
        solve_ms=0.0,
        parity=head_parity(head, probe_features(DIM)),
        data=dump_solution(Solution(head=head)),
    )


async def _swaps_ms(model: LiveModel, solved: Solved) -> list[float]:
    times_ms = []
    for _ in range(200):
        begun_s = time.perf_counter()
        model._install(replace(solved))
        times_ms.append((time.perf_counter() - begun_s) * 1e3)
        await asyncio.sleep(0.002)  # reserving numbers and storing go on meanwhile, as they do in a server
    return times_ms


async def _latencies_ms(running: Engine, model: LiveModel, seconds: float, *, solved: Solved | None) -> list[float]:
    pixels_BCHW = np.random.default_rng(0).standard_normal((1, 3, SIZE, SIZE)).astype(np.float32)
    latencies_ms = []
    ending_s = time.monotonic() + seconds

    async def publish() -> None:
        while solved is not None and time.monotonic() < ending_s:
            model._install(solved)
            await asyncio.sleep(1 / HEADS_A_SECOND)

    publishing = asyncio.create_task(publish())
    while time.monotonic() < ending_s:
        begun_s = time.perf_counter()
        snapshot = running.snapshot(model.name)
        await running.score(snapshot, Pixels(pixels_BCHW), timeout_s=None)
        latencies_ms.append((time.perf_counter() - begun_s) * 1e3)
    await publishing
    return latencies_ms


@dataclass
class _Load:
    """Requests of callers that never rest, and what becomes of them while heads are swapped in."""

    latencies_ms: list[float] = field(default_factory=list)
    swaps_ms: list[float] = field(default_factory=list)
    failed: int = 0

    async def run(
        self, running: Engine, model: LiveModel, solved: Solved | None, *, swaps: int, seconds: float
    ) -> None:
        """So many swaps, evenly over this time; or none."""
        pixels_BCHW = np.random.default_rng(0).standard_normal((1, 3, SIZE, SIZE)).astype(np.float32)
        ending_s = time.monotonic() + seconds

        async def caller() -> None:
            while time.monotonic() < ending_s:
                begun_s = time.perf_counter()
                try:
                    await running.score(running.snapshot(model.name), Pixels(pixels_BCHW), timeout_s=None)
                except EverlearnError:
                    self.failed += 1
                self.latencies_ms.append((time.perf_counter() - begun_s) * 1e3)

        callers = [asyncio.create_task(caller()) for _ in range(CALLERS)]
        if solved is not None:
            for _ in range(swaps):
                begun_s = time.perf_counter()
                model._install(replace(solved))
                self.swaps_ms.append((time.perf_counter() - begun_s) * 1e3)
                await asyncio.sleep(seconds / swaps)
        await asyncio.gather(*callers)


def _bare_ms(scene: Scene, seconds: float) -> list[float]:
    """The same requests without a server: how even this machine is."""
    session = scene.session(SIZE)
    pixels_BCHW = np.random.default_rng(0).standard_normal((1, 3, SIZE, SIZE)).astype(np.float32)
    latencies_ms = []
    ending_s = time.monotonic() + seconds
    while time.monotonic() < ending_s:
        begun_s = time.perf_counter()
        session.run(pixels_BCHW)
        latencies_ms.append((time.perf_counter() - begun_s) * 1e3)
    return latencies_ms


def _swap_row(swaps_ms: dict[int, list[float]]) -> Row:
    p50, _, p99, most = quantiles(swaps_ms[10])
    wider = "; ".join(
        f"{classes} classes p50 {np.median(times):.3f}, p99 {np.percentile(times, 99):.3f} ms"
        for classes, times in swaps_ms.items()
        if classes != 10
    )
    return Row(
        group="head_swap",
        what="new head into the running server, d = 1280, 10 classes",
        target="<= 1 ms",
        measured=f"{p50:.3f} ms",
        met=p50 <= 1,
        detail=f"p99 {p99:.3f}, largest {most:.3f} ms of {len(swaps_ms[10])}; {wider}; in process, solve not included",
    )


def _latency_row(bare: list[float], quiet: list[float], swapping: list[float]) -> Row:
    p50, _, p99, most = quantiles(swapping)
    q50, _, q99, q_most = quantiles(quiet)
    b50, _, b99, b_most = quantiles(bare)
    return Row(
        group="head_swap",
        what=f"slowest request while {HEADS_A_SECOND} heads a second are swapped in, 224 px, one caller",
        target="<= 2 x the median",
        measured=f"{most / p50:.2f} x ({most:.1f} of {p50:.1f} ms)",
        met=most <= 2 * p50,
        detail=f"{len(swapping)} requests, p99 {p99:.1f} ms; without swaps p50 {q50:.1f}, p99 {q99:.1f}, largest "
        f"{q_most:.1f} ms ({q_most / q50:.2f} x) over {len(quiet)}; bare trunk p50 {b50:.1f}, p99 {b99:.1f}, "
        f"largest {b_most:.1f} ms ({b_most / b50:.2f} x) over {len(bare)}",
    )


def _load_row(quiet: _Load, swapping: _Load) -> Row:
    p50, _, p99, _ = quantiles(swapping.latencies_ms)
    q50, _, q99, _ = quantiles(quiet.latencies_ms)
    median, _, largest_99, most = quantiles(swapping.swaps_ms)
    return Row(
        group="head_swap",
        what=f"publishing heads of {WIDE} classes while {CALLERS} callers keep the machine busy, 224 px",
        target=f"median <= {TARGET_MS:g} ms, p99 of requests unchanged, 0 failed of {SWAPS:,} swaps",
        measured=f"{median:.3f} ms; p99 of requests {p99 / q99:.2f} x; {swapping.failed} failed",
        met=median <= TARGET_MS and p99 <= 1.1 * q99 and not swapping.failed,
        detail=f"{len(swapping.swaps_ms)} swaps, p99 {largest_99:.2f}, largest {most:.2f} ms; "
        f"{len(swapping.latencies_ms)} requests p50 {p50:.1f}, p99 {p99:.1f} ms, without swaps "
        f"{len(quiet.latencies_ms)} with {q50:.1f} and {q99:.1f} ms; unchanged: within a tenth",
    )


def _through_server(scene: Scene, *, requests: int) -> Row:
    pixels = ClientPixels(np.random.default_rng(0).standard_normal((1, 3, SIZE, SIZE)).astype(np.float32))
    labels = [row % 10 for row in range(320)]
    features = ClientFeatures(clustered_features(np.random.default_rng(0), labels, DIM))

    with scene.server("swap-server") as server, server.client() as client:
        client.models.apply(scene.declaration("lite0", SIZE))
        digest = client.models.get("lite0").status.input.feature_digest
        client.learn("lite0", [(features, [str(label) for label in labels])], feature_digest=digest)

        def latencies() -> tuple[list[float], set[str]]:
            times_ms, versions = [], set()
            for _ in range(requests):
                begun_s = time.perf_counter()
                versions.add(client.predict("lite0", pixels).version)
                times_ms.append((time.perf_counter() - begun_s) * 1e3)
            return times_ms, versions

        scene.tell("predictions at rest")
        quiet, _ = latencies()
        scene.tell("predictions beside a learning stream")
        with child("learn_load", server.address, "lite0", "features", str(DIM), "100000", "10") as load:
            assert load.stdout is not None
            load.stdout.readline()
            beside, versions = latencies()
    p50, _, p99, most = quantiles(beside)
    q50, _, q99, q_most = quantiles(quiet)
    return Row(
        group="head_swap",
        what="slowest request through the server beside a stream of 10 batches a second (solves and commits included)",
        measured=f"{most / p50:.2f} x ({most:.1f} of {p50:.1f} ms)",
        detail=f"{len(beside)} requests answered by {len(versions)} versions, p99 {p99:.1f} ms; at rest p50 {q50:.1f}, "
        f"p99 {q99:.1f}, largest {q_most:.1f} ms",
    )
