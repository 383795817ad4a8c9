"""Predictions through the Open Inference Protocol against raw ONNX Runtime in process, alternating, on the same cores.

As in reference/serving.md 5: EfficientNet-Lite0, 224 px, FP32, one image a request (602 KB), c callers; *raw* is c
threads on one session with one thread a call. Client and server share the cores, so the client's cost is in the ratio.
"""

from __future__ import annotations

import json
import subprocess
import threading
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort
import psutil
from tests.benchmarks.scene import DIM, Scene, ServerProcess, child, clustered_features
from tests.benchmarks.table import Row, quantiles

from everlearn_client import Features

SIZE = 224
CONCURRENCIES = (1, 8, 32)
TARGET, TARGET_CONCURRENCY = 0.82, 8


@dataclass(frozen=True)
class Cell:
    """One run at one concurrency."""

    per_s: float
    latencies_ms: list[float]
    server_cpu_ms: float
    """A request, in the process that runs the trunk."""
    client_cpu_ms: float = 0.0
    """A request, in the process that asks."""


def measure(scene: Scene, *, quick: bool) -> list[Row]:
    """Requests a second and latencies at each concurrency."""
    repetitions, seconds = (1, 1.0) if quick else (5, 3.0)
    session = raw_session(scene.trunk(SIZE).onnx)
    with scene.server("serving") as server:
        teach(scene, server)
        with child("oip_load", server.address, "lite0", str(SIZE)) as load:
            scene.tell("warming up")
            _through_server(server, load, 8, 1.0)
            _raw(session, 2, 1.0)
            rows = []
            for concurrency in CONCURRENCIES:
                cells: list[tuple[Cell, Cell]] = []
                for repetition in range(repetitions):
                    scene.tell(f"{concurrency} at a time, {repetition + 1} of {repetitions}")
                    raw = _raw(session, concurrency, seconds)
                    cells.append((raw, _through_server(server, load, concurrency, seconds)))
                rows.append(_row(concurrency, cells))
    return rows


def teach(scene: Scene, server: ServerProcess) -> None:
    """A model `lite0` that has learned ten classes."""
    labels = [row % 10 for row in range(320)]
    features = clustered_features(np.random.default_rng(0), labels, DIM)
    with server.client() as client:
        client.models.apply(scene.declaration("lite0", SIZE))
        digest = client.models.get("lite0").status.input.feature_digest
        client.learn("lite0", [(Features(features), [str(label) for label in labels])], feature_digest=digest)


def raw_session(onnx: bytes) -> ort.InferenceSession:
    """One thread a call."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return ort.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])


def _raw(session: ort.InferenceSession, concurrency: int, seconds: float) -> Cell:
    latencies_ms: list[float] = []
    pixels_BCHW = np.random.default_rng(0).standard_normal((1, 3, SIZE, SIZE)).astype(np.float32)
    begun_s, begun_cpu_s = time.perf_counter(), time.process_time()

    def caller() -> None:
        while (sent_s := time.perf_counter()) - begun_s < seconds:
            session.run(["features"], {"pixels": pixels_BCHW})
            latencies_ms.append((time.perf_counter() - sent_s) * 1e3)

    threads = [threading.Thread(target=caller) for _ in range(concurrency)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took_s, cpu_s = time.perf_counter() - begun_s, time.process_time() - begun_cpu_s
    return Cell(len(latencies_ms) / took_s, latencies_ms, cpu_s * 1e3 / len(latencies_ms))


def raw_rate(session: ort.InferenceSession, concurrency: int, seconds: float) -> float:
    """Requests a second of so many threads in this process."""
    return _raw(session, concurrency, seconds).per_s


def asked(load: subprocess.Popen[str], concurrency: int, seconds: float) -> dict[str, Any]:
    """What a load generator tells of one run: seconds, latencies_ms. Raises RuntimeError where it has ended."""
    assert load.stdin is not None
    assert load.stdout is not None
    load.stdin.write(f"{concurrency} {seconds}\n")
    load.stdin.flush()
    line = load.stdout.readline()
    if not line:
        raise RuntimeError("the load generator ended; its error is above")
    told: dict[str, Any] = json.loads(line)
    return told


def _through_server(server: ServerProcess, load: subprocess.Popen[str], concurrency: int, seconds: float) -> Cell:
    begun = _cpu_s(server.pid), _cpu_s(load.pid)
    told = asked(load, concurrency, seconds)
    count = len(told["latencies_ms"])
    spent = _cpu_s(server.pid) - begun[0], _cpu_s(load.pid) - begun[1]
    return Cell(count / told["seconds"], told["latencies_ms"], spent[0] * 1e3 / count, spent[1] * 1e3 / count)


def _cpu_s(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def _row(concurrency: int, cells: list[tuple[Cell, Cell]]) -> Row:
    ratios = [served.per_s / raw.per_s for raw, served in cells]
    ratio = float(np.median(ratios))
    p50, _, p99, _ = quantiles([value for _, served in cells for value in served.latencies_ms])
    raw_p50, _, raw_p99, _ = quantiles([value for raw, _ in cells for value in raw.latencies_ms])
    raw_cpu_ms = float(np.median([raw.server_cpu_ms for raw, _ in cells]))
    server_cpu_ms = float(np.median([served.server_cpu_ms for _, served in cells]))
    client_cpu_ms = float(np.median([served.client_cpu_ms for _, served in cells]))
    aimed = concurrency == TARGET_CONCURRENCY
    return Row(
        group="serving",
        what=f"OIP at concurrency {concurrency}, 224 px FP32 raw, validation and metrics on",
        target=f">= {TARGET} of raw ONNX Runtime" if aimed else "",
        measured=f"{ratio:.3f} of raw ({np.median([served.per_s for _, served in cells]):.0f} of "
        f"{np.median([raw.per_s for raw, _ in cells]):.0f} requests/s)",
        met=ratio >= TARGET if aimed else None,
        detail=f"p50 {p50:.1f} ms, p99 {p99:.1f} ms; raw {raw_p50:.1f} and {raw_p99:.1f} ms; {len(cells)} "
        f"alternations, ratios {min(ratios):.3f} to {max(ratios):.3f}; CPU a request: raw {raw_cpu_ms:.2f} ms, server "
        f"{server_cpu_ms:.2f} + client {client_cpu_ms:.2f} ms, which makes "
        f"{raw_cpu_ms / (server_cpu_ms + client_cpu_ms):.3f} where the cores are busy",
    )
