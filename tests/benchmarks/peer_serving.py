"""everlearn beside the servers that people would otherwise take: `make bench-serving`.

The same EfficientNet-Lite0, one image of 224 px as float32 a request (602 KB), the same machine, closed-loop callers;
raw ONNX Runtime, everlearn and a peer in turn, so that each ratio is of one moment. gRPC peers get the same client
process and the same bytes (Open Inference Protocol); those that speak HTTP alone get base64 in JSON, as their users
would send it. The peers answer features; everlearn also applies a head, validates, and counts metrics.
"""

from __future__ import annotations

import subprocess
import time
from dataclasses import dataclass, field

import grpc
import numpy as np
import onnxruntime as ort
from tests.benchmarks.peer_servers import PEERS, Peer, PeerError, family_cpu_s, family_mb, running
from tests.benchmarks.scene import Scene, child
from tests.benchmarks.serving import CONCURRENCIES, SIZE, asked, raw_rate, raw_session, teach
from tests.benchmarks.table import Row, quantiles

from everlearn_protos.oip import SERVICE, message

TARGET = 0.85
TARGET_AT = 8


@dataclass
class Found:
    """Of one server at one concurrency: rates, the ratios to raw of the same moment, latencies."""

    per_s: list[float] = field(default_factory=list)
    of_raw: list[float] = field(default_factory=list)
    latencies_ms: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)


@dataclass
class Table:
    """All of a run."""

    cells: dict[str, dict[int, Found]] = field(default_factory=dict)
    memory_mb: dict[str, float] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def cell(self, server: str, concurrency: int) -> Found:
        """Made when it is first asked for."""
        return self.cells.setdefault(server, {}).setdefault(concurrency, Found())


def measure(scene: Scene, *, quick: bool) -> list[Row]:
    """Each peer in turn, everlearn and raw beside it."""
    repetitions, seconds = (1, 1.0) if quick else (3, 3.0)
    onnx = scene.folder / "peers.onnx"
    onnx.write_bytes(scene.trunk(SIZE).onnx)
    session, table = raw_session(scene.trunk(SIZE).onnx), Table()
    with scene.server("peers-own") as server:
        teach(scene, server)
        with child("oip_load", server.address, "lite0", str(SIZE)) as own:
            _cell(own, server.pid, 8, 1.0)
            raw_rate(session, 2, 1.0)
            for peer in PEERS:
                scene.tell(f"{peer.shown}: its environment")
                try:
                    with running(peer, onnx, scene.folder / "peers" / peer.name) as (address, pid):
                        _beside(scene, table, session, (own, server.pid), (peer, address, pid), repetitions, seconds)
                except PeerError as error:
                    table.missing[peer.shown] = str(error)
            table.memory_mb["everlearn"] = family_mb(server.pid)
    return _rows(table)


def _beside(
    scene: Scene,
    table: Table,
    session: ort.InferenceSession,
    own: tuple[subprocess.Popen[str], int],
    other: tuple[Peer, str, int],
    repetitions: int,
    seconds: float,
) -> None:
    peer, address, pid = other
    arguments = (address, str(SIZE))
    if peer.speaks == "oip":
        _await_model(address)
        arguments = (address, "lite0", str(SIZE))
    with child(f"{peer.speaks}_load", *arguments) as load:
        _warm(load, pid)
        for concurrency in CONCURRENCIES:
            for repetition in range(repetitions):
                scene.tell(f"{peer.shown}: {concurrency} at a time, {repetition + 1} of {repetitions}")
                raw_per_s = raw_rate(session, concurrency, seconds)
                for name, (process, server_pid) in (("everlearn", own), (peer.shown, (load, pid))):
                    per_s, latencies_ms, cpu_ms = _cell(process, server_pid, concurrency, seconds)
                    cell = table.cell(name, concurrency)
                    cell.per_s.append(per_s)
                    cell.of_raw.append(per_s / raw_per_s)
                    cell.latencies_ms += latencies_ms
                    cell.cpu_ms.append(cpu_ms)
        table.memory_mb[peer.shown] = family_mb(pid)


def _await_model(address: str) -> None:
    """Servers listen before their model is there."""
    give_up_s, told = time.monotonic() + 120, "it says no more"
    with grpc.insecure_channel(address) as channel:
        ready = channel.unary_unary(
            f"/{SERVICE}/ModelReady",
            request_serializer=message("ModelReadyRequest").SerializeToString,
            response_deserializer=message("ModelReadyResponse").FromString,
        )
        while time.monotonic() < give_up_s:
            try:
                if ready(message("ModelReadyRequest")(name="lite0"), timeout=10).ready:
                    return
            except grpc.RpcError as error:
                told = str(error.code())
            time.sleep(0.5)
    raise PeerError(f"its model is not ready: {told}")


def _warm(load: subprocess.Popen[str], pid: int) -> None:
    try:
        _cell(load, pid, 8, 2.0)
    except RuntimeError as error:
        raise PeerError(f"does not answer: {error}") from error


def _cell(load: subprocess.Popen[str], pid: int, concurrency: int, seconds: float) -> tuple[float, list[float], float]:
    """Requests a second, latencies, and CPU of the server a request."""
    begun_s = family_cpu_s(pid)
    told = asked(load, concurrency, seconds)
    count = len(told["latencies_ms"])
    return count / told["seconds"], told["latencies_ms"], (family_cpu_s(pid) - begun_s) * 1e3 / max(count, 1)


def _rows(table: Table) -> list[Row]:
    rows = []
    for concurrency in CONCURRENCIES:
        at = {name: cells[concurrency] for name, cells in table.cells.items() if concurrency in cells}
        best = max((float(np.median(cell.of_raw)) for name, cell in at.items() if name != "everlearn"), default=0.0)
        for name, cell in sorted(at.items(), key=lambda item: -float(np.median(item[1].of_raw))):
            rows.append(_row(name, concurrency, cell, best, table.memory_mb.get(name, 0.0)))
    for name, why in table.missing.items():
        rows.append(Row(group="peer_serving", what=f"{name}: not measured", measured="-", detail=why))
    return rows


def _row(name: str, concurrency: int, cell: Found, best: float, memory_mb: float) -> Row:
    ratio = float(np.median(cell.of_raw))
    p50, _, p99, _ = quantiles(cell.latencies_ms)
    ours = name == "everlearn"
    wanted = ratio > best and (concurrency != TARGET_AT or ratio >= TARGET)
    target = f"ahead of every peer{f', >= {TARGET} of raw' if concurrency == TARGET_AT else ''}"
    return Row(
        group="peer_serving",
        what=f"{name}, concurrency {concurrency}",
        target=target if ours else "",
        measured=f"{ratio:.3f} of raw ({np.median(cell.per_s):.0f} requests/s)",
        met=wanted if ours else None,
        detail=f"p50 {p50:.1f}, p99 {p99:.1f} ms; ratios {min(cell.of_raw):.3f} to {max(cell.of_raw):.3f} in "
        f"{len(cell.of_raw)} alternations; server CPU {np.median(cell.cpu_ms):.1f} ms a request; "
        f"{memory_mb:.0f} MB (PSS)",
    )
