"""Half-open connections by the hundred, and streams that are reset as they begin: a good client hardly notices."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import psutil
from tests.faults.forked import ForkedServer
from tests.faults.http2 import Flood, GoodClient, Greetings, for_seconds

SHORT: Mapping[str, float] = {"sockets": 500, "reset_s": 3.0, "resets_a_second": 10_000}
LONG: Mapping[str, float] = {"sockets": 900, "reset_s": 30.0, "resets_a_second": 10_000}
PATH = "/everlearn.v1.PredictService/Predict"
REAPED_S = 40.0
"""The server gives a greeting 3 s; the rest is for a loaded machine."""
SLOWEST_S = 10.0
"""Of a good call beside them: ten thousand times what it takes, and a loaded machine passes."""
MOST_GROWTH_BYTES = 48 << 20


def run(folder: Path, *, sockets: float, reset_s: float, resets_a_second: float) -> Mapping[str, object]:
    """Speed is told; what is asserted is that good calls are answered, sockets reaped, and memory kept."""
    folder.mkdir(exist_ok=True)
    with ForkedServer(folder / "data") as server:
        counts = {
            **half_open(server.address, int(sockets)),
            **resets(server, seconds=reset_s, a_second=int(resets_a_second)),
        }
        assert server.terminate() == 0
    assert "Traceback" not in server.log, server.log[-2000:]
    return counts


def half_open(address: str, sockets: int) -> Mapping[str, object]:
    """Greetings that never end."""
    with GoodClient(address) as good, Greetings(address, sockets) as greetings:
        began_s = time.monotonic()
        slowest_s = max(good.call_s() for _ in range(20))
        while (standing := greetings.standing) and time.monotonic() - began_s < REAPED_S:
            slowest_s = max(slowest_s, good.call_s())
            greetings.drip()
            time.sleep(0.3)
        took_s = time.monotonic() - began_s
        assert standing == 0, f"{standing} of {sockets} half-open connections stand after {took_s:.0f} s"
        assert slowest_s < SLOWEST_S, f"a good call took {slowest_s:.2f} s beside {sockets} half-open connections"
    return {"reaped s": round(took_s, 1), "slowest good call ms": round(slowest_s * 1e3, 1)}


def resets(server: ForkedServer, *, seconds: float, a_second: int) -> Mapping[str, object]:
    """A good client beside a flood, against the same client alone."""
    process = psutil.Process(server.pid)
    with GoodClient(server.address) as good:
        alone = good.calls(for_seconds(max(seconds / 3, 1.0)))
        before = process.memory_info().rss
        with Flood(server.address, path=PATH, a_second=a_second) as flood:
            beside = good.calls(for_seconds(seconds))
        good.call_s()
        grown = process.memory_info().rss - before
    assert flood.streams > 100 * seconds, f"no flood: {flood.streams} streams"
    assert beside.failed == 0, f"{beside.failed} of {beside.count} calls of a good client failed"
    assert grown < MOST_GROWTH_BYTES, f"{grown >> 20} MiB more after {flood.streams} streams"
    return {
        "streams reset": flood.streams,
        "over connections": flood.connections,
        "good calls": beside.count,
        "p50 ms, alone and beside": f"{alone.p50_s * 1e3:.1f}, {beside.p50_s * 1e3:.1f}",
        "p99 ms, alone and beside": f"{alone.p99_s * 1e3:.1f}, {beside.p99_s * 1e3:.1f}",
        "MiB more": grown >> 20,
    }
