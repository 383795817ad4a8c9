"""F12 without privileges, through a proxy: resets every 2 s, 200 ms of latency, 16 kbit/s, cuts; counted once each."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.faults.proxy import Proxy
from tests.faults.scene import PATIENCE_S, Scene

SHORT: Mapping[str, float] = {"each_s": 5.0}
LONG: Mapping[str, float] = {"each_s": 120.0}
KINDS_THAT_BREAK = 3
"""Resets, cuts, and what comes before refusals: each ends every client's connection at least once."""
RECONNECT_S = 5.0
"""After a network is well again, a client has to be heard within so much."""
SLACK = 10
"""And so many times what it takes to be heard where nothing is wrong: a loaded machine is slow at all of it."""


def run(folder: Path, *, each_s: float) -> Mapping[str, object]:
    """Two clients; each kind of trouble lasts `each_s`, and after it something has to become durable soon."""
    folder.mkdir(exist_ok=True)
    usual_s = worst_s = 0.0
    with Proxy() as proxy:
        scene = Scene(folder, batches=int(400 * each_s) + 4000, address=proxy.address)
        proxy.target = scene.server.address
        scene.server.start()
        scene.go(freely=False)
        progress_s(scene)
        usual_s = max(progress_s(scene) for _ in range(3))
        for trouble in (_resets, _latency, _slow, _cuts, _refusals):
            heal = trouble(proxy)
            until_s, due_s = time.monotonic() + each_s, time.monotonic() + 2
            while time.monotonic() < until_s:
                scene.trickle()
                time.sleep(0.02)
                if time.monotonic() > due_s and trouble in (_resets, _cuts):
                    proxy.reset() if trouble is _resets else proxy.cut()
                    due_s += 2
            heal()
            worst_s = max(worst_s, progress_s(scene))
        scene.calm_end()
        done = dict(proxy.done)
    within_s = RECONNECT_S + SLACK * usual_s
    assert worst_s < within_s, f"{worst_s:.1f} s until a client was heard again, {usual_s:.2f} s without trouble"
    missing = {"reset", "cut", "refused", "late", "slow"} - {what for what, times in done.items() if times}
    assert not missing, f"this trouble never came: {missing}"
    reconnects = [learner.reconnects for learner in scene.learners]
    assert min(reconnects) >= KINDS_THAT_BREAK, f"connections were broken, and clients connected anew {reconnects}"
    return {
        "seconds of trouble": 5 * each_s,
        "connections broken": done["reset"] + done["cut"],
        "connections refused": done["refused"],
        "messages late": done["late"],
        "messages slow": done["slow"],
        "reconnects": sum(reconnects),
        "reconnect s, most": round(worst_s, 2),
        "batches": sum(len(learner.batches) for learner in scene.learners),
        "batches lost": 0,
    }


def progress_s(scene: Scene, *, patience_s: float = PATIENCE_S) -> float:
    """Seconds until something of every client has become durable."""
    began_s, before = time.monotonic(), [learner.acknowledged for learner in scene.learners]
    while any(learner.acknowledged == had for learner, had in zip(scene.learners, before, strict=True)):
        assert time.monotonic() - began_s < patience_s, "nothing becomes durable"
        scene.trickle()
        time.sleep(0.01)
    return time.monotonic() - began_s


def _resets(proxy: Proxy) -> Callable[[], None]:
    return lambda: None


def _cuts(proxy: Proxy) -> Callable[[], None]:
    return lambda: None


def _latency(proxy: Proxy) -> Callable[[], None]:
    proxy.latency_s = 0.2
    return lambda: setattr(proxy, "latency_s", 0.0)


def _slow(proxy: Proxy) -> Callable[[], None]:
    proxy.bytes_a_second = 16_000 / 8
    return lambda: setattr(proxy, "bytes_a_second", float("inf"))


def _refusals(proxy: Proxy) -> Callable[[], None]:
    proxy.refuses = True
    proxy.reset()
    return lambda: setattr(proxy, "refuses", False)
