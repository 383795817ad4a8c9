"""A thousand models on one backbone beside one: what they take of memory, predictions, learning and starting.

Each model learns ten classes from features of EfficientNet-Lite0 (d = 1280); its Gram matrix alone takes 13 MB, of
which the working set (`--working-set-bytes`) keeps some. Requests to one model and to all of them in turn alternate, of
images (the trunk is in it) and of features (what is left of a request without it).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psutil
from tests.benchmarks.scene import DIM, Scene, ServerProcess, clustered_features
from tests.benchmarks.table import Row, quantiles

from everlearn_client import Client, Features, Pixels

CLASSES, BATCH, SIZE = 10, 32, 96
WORKING_SET_BYTES = 2**28
CALLERS = 8
LEARNERS = 64


def measure(scene: Scene, *, quick: bool) -> list[Row]:
    """Of a fresh server, which is then restarted."""
    count = 6 if quick else 1000
    arguments = ("--working-set-bytes", str(WORKING_SET_BYTES))
    with scene.server("heads", *arguments) as server, server.client() as client:
        digest = _declare(scene, client, "site-0")
        _teach(client, "site-0", digest, seed=0)
        client.predict("site-0", _image())
        time.sleep(5)
        one_mb = _resident_mb(server)
        begun_s = time.monotonic()
        for number in range(1, count):
            if number % 25 == 0:
                scene.tell(f"{number} of {count} models")
            _declare(scene, client, f"site-{number}")
            _teach(client, f"site-{number}", digest, seed=number)
        made_s = time.monotonic() - begun_s
        time.sleep(10)
        all_mb = _resident_mb(server)
        names = [f"site-{number}" for number in range(count)]
        rows = [
            _predicting(scene, server, names, "images", seconds=1.0 if quick else 5.0),
            _predicting(scene, server, names, "features", seconds=1.0 if quick else 5.0),
            _learning(scene, server, names, digest, seconds=2.0 if quick else 20.0),
        ]
        time.sleep(6)
        after_mb = _resident_mb(server)
    scene.tell("starting again")
    return [_memory_row(count, one_mb, all_mb, after_mb, made_s), *rows, _restart(scene, server, names, arguments)]


def _declare(scene: Scene, client: Client, name: str) -> str:
    client.models.apply(scene.declaration(name, SIZE))
    return str(client.models.get(name).status.input.feature_digest)


def _teach(client: Client, name: str, digest: str, *, seed: int) -> None:
    random, labels = np.random.default_rng(seed), [row % CLASSES for row in range(BATCH)]
    features = Features(clustered_features(random, labels, DIM))
    client.learn(name, [(features, [str(label) for label in labels])], feature_digest=digest)


def _image() -> Pixels:
    return Pixels(np.random.default_rng(0).standard_normal((1, 3, SIZE, SIZE)).astype(np.float32))


def _one_row() -> Features:
    return Features(clustered_features(np.random.default_rng(1), [3], DIM))


def _resident_mb(server: ServerProcess) -> float:
    return float(psutil.Process(server.pid).memory_info().rss / 1e6)


def _memory_row(count: int, one_mb: float, all_mb: float, after_mb: float, made_s: float) -> Row:
    allowed_mb = WORKING_SET_BYTES / 1e6
    return Row(
        group="heads",
        what=f"{count} models of {CLASSES} classes on one backbone (d = {DIM}) beside one: resident memory",
        target="<= trunk + 8 MB a thousand heads",
        measured=f"+{all_mb - one_mb:.0f} MB, of which the working set may have {allowed_mb:.0f}",
        met=all_mb - one_mb - allowed_mb <= 8 * count / 1000,
        detail=f"{one_mb:.0f} MB with one, {all_mb:.0f} with all, {after_mb:.0f} after predictions and learning; all "
        f"that was learned would be {count * 8 * DIM**2 / 1e6:.0f} MB; declared and taught in "
        f"{made_s / count * 1e3:.0f} ms each",
    )


def _predicting(scene: Scene, server: ServerProcess, names: Sequence[str], form: str, *, seconds: float) -> Row:
    sample = _image() if form == "images" else _one_row()
    alone, together = list[list[float]](), list[list[float]]()
    first = list[float]()
    with server.client() as client:
        for name in names:
            begun_s = time.perf_counter()
            client.predict(name, _one_row())
            first.append((time.perf_counter() - begun_s) * 1e3)
    for repetition in range(3):
        scene.tell(f"predictions of {form}, {repetition + 1} of 3")
        alone.append(_latencies_ms(server, names[:1], sample, seconds))
        together.append(_latencies_ms(server, names, sample, seconds))
    ratio = float(np.median([len(all_) / len(one) for one, all_ in zip(alone, together, strict=True)]))
    p50, _, p99, _ = quantiles([each for run in together for each in run])
    q50, _, q99, _ = quantiles([each for run in alone for each in run])
    f50, _, f99, most = quantiles(first)
    return Row(
        group="heads",
        what=f"requests/s to {len(names)} models in turn against one, {form}, {CALLERS} callers",
        target=">= 0.9",
        measured=f"{ratio:.3f}",
        met=ratio >= 0.9,
        detail=f"p50 {p50:.2f}, p99 {p99:.2f} ms; one model {q50:.2f} and {q99:.2f} ms; 3 alternations of "
        f"{seconds:.0f} s; one after the other, each model once, by features: p50 {f50:.2f}, p99 {f99:.2f}, "
        f"largest {most:.2f} ms",
    )


def _latencies_ms(
    server: ServerProcess, names: Sequence[str], sample: Pixels | Features, seconds: float
) -> list[float]:
    ending_s = time.monotonic() + seconds

    def caller(number: int) -> list[float]:
        times_ms, at = list[float](), number * len(names) // CALLERS
        with server.client(f"caller-{number}") as client:
            while time.monotonic() < ending_s:
                begun_s = time.perf_counter()
                client.predict(names[at % len(names)], sample)
                times_ms.append((time.perf_counter() - begun_s) * 1e3)
                at += 1
        return times_ms

    with ThreadPoolExecutor(CALLERS) as pool:
        return [each for times_ms in pool.map(caller, range(CALLERS)) for each in times_ms]


def _learning(scene: Scene, server: ServerProcess, names: Sequence[str], digest: str, *, seconds: float) -> Row:
    """Some of the models learn at once, each from a client of its own that always has a batch more."""
    scene.tell(f"{LEARNERS} models learn at once")
    labels = [row % CLASSES for row in range(BATCH)]
    batch = (Features(clustered_features(np.random.default_rng(2), labels, DIM)), [str(label) for label in labels])
    ending_s = time.monotonic() + seconds

    def stream(name: str) -> int:
        def batches():  # type: ignore[no-untyped-def]
            while time.monotonic() < ending_s:
                yield batch

        with server.client(f"device-{name}") as client:
            return int(client.learn(name, batches(), feature_digest=digest).durable_samples) // BATCH

    learning = names[: min(LEARNERS, len(names))]
    with ThreadPoolExecutor(len(learning)) as pool:
        counts = np.array(list(pool.map(stream, learning)))
    fairness = float(counts.sum() ** 2 / (len(counts) * (counts**2).sum()))
    return Row(
        group="heads",
        what=f"{len(learning)} of {len(names)} models learn at once, a stream each: fairness (Jain) of durable batches",
        target=">= 0.9",
        measured=f"{fairness:.3f}",
        met=fairness >= 0.9,
        detail=f"{counts.sum() / seconds:.0f} batches of {BATCH} a second, {counts.min()} to {counts.max()} a model in "
        f"{seconds:.0f} s",
    )


def _restart(scene: Scene, server: ServerProcess, names: Sequence[str], arguments: Sequence[str]) -> Row:
    begun_s = time.monotonic()
    again = ServerProcess(server.folder, *arguments, fresh=False)
    try:
        started_s = time.monotonic() - begun_s
        with again.client() as client:
            client.predict(names[-1], _one_row())
        resident_mb = _resident_mb(again)
    finally:
        again.stop()
    return Row(
        group="heads",
        what=f"a server with {len(names)} models starts again and serves",
        measured=f"{started_s:.1f} s",
        detail=f"{started_s / len(names) * 1e3:.0f} ms a model; {resident_mb:.0f} MB then",
    )
