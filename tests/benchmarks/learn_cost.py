"""What learning a batch of 32 costs beyond its trunk forward pass (d = 1280, ten classes).

In process, by the real objects, one thread: test (scores of the live head), quantise, integrate, and the shares of a
commit and of the solves that a batch pays for. Through a real server: images a second of a long stream against bare
`TrunkSession.run` on as many threads as the server has, and CPU time an image on both sides.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import psutil
from tests.benchmarks.scene import DIM, Scene, child, clustered_features, front, jpeg_files
from tests.benchmarks.table import Row

from everlearn.heads import head_for
from everlearn.inputs.forms import decode_one
from everlearn.inputs.samples import EncodedImages
from everlearn.memories.statistics import Statistics
from everlearn.runtime.session import TrunkSession
from everlearn.spec.input import Input
from everlearn.values import PixelsBCHW

BATCH = 32
TARGET = 0.10
LABELS = [row % 10 for row in range(BATCH)]


def measure(scene: Scene, *, quick: bool) -> list[Row]:
    """Parts in process at 96 and 224 px, then the whole through a server."""
    rows = []
    parts_ms = _parts_ms(scene, repetitions=20 if quick else 200)
    for size in (96, 224):
        forward_ms = _forward_ms(scene, size, repetitions=2 if quick else 10)
        rows.append(_parts_row(size, forward_ms, parts_ms))
    for size in (96, 224):
        batches = {96: 20, 224: 5} if quick else {96: 300, 224: 60}
        rows.append(_server_row(scene, size, batches[size], repetitions=1 if quick else 3))
    return rows


def _parts_ms(scene: Scene, *, repetitions: int) -> dict[str, float]:
    scene.tell("test, quantise, integrate, solve, serialise")
    random = np.random.default_rng(0)
    batches = [clustered_features(random, LABELS, DIM) for _ in range(16)]
    labels = [str(label) for label in LABELS]
    scale = scene.trunk(96).scale
    memory = Statistics.create(DIM, ())
    for batch_Bd in batches * 4:
        memory.integrate(scale.quantise(batch_Bd), labels)
    balanced = head_for("balanced_ridge")
    head = balanced.solve(memory.sums, scale)
    quantised = [scale.quantise(batch_Bd) for batch_Bd in batches]
    turn = iter(range(10**9))
    solves = max(3, repetitions // 20)
    return {
        "test": _median_ms(lambda: head.scores(batches[next(turn) % 16]).argmax(axis=1), repetitions),
        "quantise": _median_ms(lambda: scale.quantise(batches[next(turn) % 16]), repetitions),
        "integrate": _median_ms(lambda: memory.integrate(quantised[next(turn) % 16], labels), repetitions),
        "serialise": _median_ms(memory.to_bytes, solves),
        "copy": _median_ms(memory.sums.copy, solves),
        "quick solve": _median_ms(lambda: balanced.solve(memory.sums, scale, hint=head.regularization), solves),
        "exact solve": _median_ms(lambda: balanced.solve(memory.sums, scale), solves),
    }


def _median_ms(task: Callable[[], object], repetitions: int) -> float:
    times_ms = []
    for _ in range(repetitions):
        begun_s = time.perf_counter()
        task()
        times_ms.append((time.perf_counter() - begun_s) * 1e3)
    return float(np.median(times_ms))


def _forward_ms(scene: Scene, size: int, *, repetitions: int) -> float:
    """32 images, one a pass, on one thread: as the server runs them on a CPU."""
    session, images = scene.session(size), _pixels(size)

    def forward() -> None:
        for row in range(BATCH):
            session.run(images[row : row + 1])

    forward()
    scene.tell(f"forward pass at {size} px")
    return _median_ms(forward, repetitions)


def _pixels(size: int) -> PixelsBCHW:
    return np.random.default_rng(0).standard_normal((BATCH, 3, size, size)).astype(np.float32)


def _parts_row(size: int, forward_ms: float, parts_ms: dict[str, float]) -> Row:
    own = parts_ms["test"] + parts_ms["quantise"] + parts_ms["integrate"]
    share = own / forward_ms
    rest = ", ".join(f"{name} {parts_ms[name]:.1f}" for name in ("serialise", "copy", "quick solve", "exact solve"))
    return Row(
        group="learn_cost",
        what=f"test + quantise + integrate of a batch of 32, in process, at {size} px",
        measured=f"{share:.1%} of the forward pass ({own:.2f} ms of {forward_ms:.0f} ms)",
        detail=", ".join(f"{name} {parts_ms[name]:.2f} ms" for name in ("test", "quantise", "integrate"))
        + f". Not a batch's own, but shared by many (ms each): {rest}; their shares are in the rows through the server",
    )


def _server_row(scene: Scene, size: int, batches: int, *, repetitions: int) -> Row:
    session, pixels_BCHW = scene.session(size), _pixels(size)
    ratios, told, cpu = [], [], []
    with scene.server(f"learn-{size}") as server, server.client() as client:
        client.models.apply(scene.declaration("lite0", size))
        process = psutil.Process(server.pid)
        for repetition in range(repetitions):
            scene.tell(f"learning at {size} px, {repetition + 1} of {repetitions}")
            count = BATCH * batches // repetitions
            bare, bare_cpu_ms = _bare(session, pixels_BCHW, count)
            arguments = (server.address, "lite0", "images", str(size), str(batches // repetitions), "0")
            before_s = _cpu_s(process)
            with child("learn_load", *arguments) as load:
                answer = _last_json(load.communicate(timeout=300)[0])
            rate = answer["images"] / answer["seconds"]
            ratios.append(rate / bare)
            told.append((rate, bare, answer))
            cpu.append((1e3 * (_cpu_s(process) - before_s) / count, bare_cpu_ms))
    ratio = float(np.median(ratios))
    rate, bare, answer = told[int(np.argsort(ratios)[len(ratios) // 2])]
    server_cpu_ms, bare_cpu_ms = np.median(np.array(cpu), axis=0)
    decode_cpu_ms = _decode_cpu_ms(scene, size)
    beyond = (server_cpu_ms - bare_cpu_ms - decode_cpu_ms) / bare_cpu_ms
    return Row(
        group="learn_cost",
        what=f"everything beyond decode and forward pass, through the server at {size} px: test, integrate, wire, "
        "shares of commits and solves",
        target=f"<= {TARGET:.0%} of the forward pass",
        measured=f"{beyond:.1%} of the forward pass's CPU time",
        met=bool(beyond <= TARGET),
        detail=f"CPU an image: server {server_cpu_ms:.2f} ms, of it decode {decode_cpu_ms:.2f}, bare TrunkSession.run "
        f"{bare_cpu_ms:.2f} ms; {rate:.0f} images/s of bare {bare:.0f} on all cores, with the client beside it "
        f"({ratio:.3f}; {min(ratios):.3f} to {max(ratios):.3f} in {repetitions} alternations of {count} images); a "
        f"batch: test {answer['test_ms']:.2f}, quantise + integrate {answer['integrate_ms']:.2f} ms",
    )


def _decode_cpu_ms(scene: Scene, size: int) -> float:
    """CPU milliseconds from a JPEG to pixels, with the trunk's pass in between: it leaves nothing in the caches."""
    session, pixels_BCHW = scene.session(size), _pixels(size)
    files = tuple(jpeg_files(scene, size, BATCH))
    samples, told, declared = EncodedImages(files), front(size), Input()
    times_ms = []
    for row in range(5 * BATCH):
        session.run(pixels_BCHW[:1])
        begun_s = time.thread_time()
        decode_one(samples, row % BATCH, front=told, declared=declared)
        times_ms.append((time.thread_time() - begun_s) * 1e3)
    return float(np.mean(times_ms))


def _bare(session: TrunkSession, pixels_BCHW: PixelsBCHW, count: int) -> tuple[float, float]:
    """Images a second on one thread a core, and CPU milliseconds an image."""
    cores = len(os.sched_getaffinity(0))

    def run() -> None:
        for index in range(count // cores):
            row = index % BATCH
            session.run(pixels_BCHW[row : row + 1])

    threads = [threading.Thread(target=run) for _ in range(cores)]
    begun_s, begun_cpu_s = time.perf_counter(), time.process_time()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    done = count // cores * cores
    return done / (time.perf_counter() - begun_s), 1e3 * (time.process_time() - begun_cpu_s) / done


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _last_json(text: str) -> dict[str, Any]:
    if not text.strip().startswith("ready"):
        raise RuntimeError("the learner ended; its error is above")
    told: dict[str, Any] = json.loads(text.strip().splitlines()[-1])
    return told
