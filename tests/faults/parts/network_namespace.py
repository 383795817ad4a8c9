"""F12 with privileges: the server in a network namespace of its own; 20 % of all packets are lost, then all of them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.faults.not_here import NotHereError
from tests.faults.parts.bad_network import RECONNECT_S, SLACK, progress_s
from tests.faults.scene import PATIENCE_S, Scene

SHORT: Mapping[str, float] = {"loss_s": 4.0, "partition_s": 4.0}
LONG: Mapping[str, float] = {"loss_s": 120.0, "partition_s": 30.0}
KEPT_S = 20.0
"""Silence after which keepalive has closed every connection."""
RULES = """
table inet faults {{
  chain come {{ type filter hook input priority 0; {rule}; }}
  chain go {{ type filter hook output priority 0; {rule}; }}
}}
"""


class Namespace:
    """A network of one host, joined to this one by a cable that can be cut."""

    def __init__(self, name: str, host: str, here: str) -> None:
        self.name, self.host, self.here = name, host, here

    def rule(self, rule: str = "accept") -> int:
        """What becomes of packets, both ways; returns how many were dropped by the rule before."""
        dropped = sum(
            int(packets) for packets in re.findall(r"packets (\d+) bytes \d+ drop", self._nft("list ruleset"))
        )
        self._nft("flush ruleset\n" + RULES.format(rule=rule))
        return dropped

    def _nft(self, orders: str) -> str:
        command = ["ip", "netns", "exec", self.name, "nft", "-f", "-"]
        return subprocess.run(command, input=orders, text=True, check=True, stdout=subprocess.PIPE).stdout


@contextmanager
def namespace() -> Iterator[Namespace]:
    """Raises NotHereError."""
    if os.geteuid() != 0:
        raise NotHereError("network namespaces need root")
    for tool in ("ip", "nft"):
        if shutil.which(tool) is None:
            raise NotHereError(f"{tool} is not installed (Debian: iproute2, nftables)")
    number = os.getpid() % 16_000
    name, here, there = f"el{number}", f"ela{number}", f"elb{number}"
    net = f"10.{200 + number // 250 % 50}.{number % 250}"
    made = Namespace(name, f"{net}.2", f"{net}.1")
    try:
        try:
            _ip("netns", "add", name)
            _ip("link", "add", here, "type", "veth", "peer", "name", there, "netns", name)
        except subprocess.CalledProcessError as error:
            raise NotHereError(f"no network namespace can be made: {error.stderr.decode().strip()}") from error
        _ip("addr", "add", f"{made.here}/24", "dev", here)
        _ip("link", "set", here, "up")
        _ip("-n", name, "addr", "add", f"{made.host}/24", "dev", there)
        _ip("-n", name, "link", "set", there, "up")
        _ip("-n", name, "link", "set", "lo", "up")
        yield made
    finally:
        subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def run(folder: Path, *, loss_s: float, partition_s: float) -> Mapping[str, object]:
    """Two clients stream all the while."""
    folder.mkdir(exist_ok=True)
    with namespace() as net:
        scene = Scene(folder, batches=int(100 * (loss_s + partition_s)) + 8000)
        scene.server.host, scene.server.namespace = net.host, net.name
        scene.crowd.address = scene.server.address
        scene.server.start()
        scene.go(freely=False)
        progress_s(scene)
        before = max(progress_s(scene) for _ in range(3))
        net.rule("numgen random mod 100 < 20 counter drop")
        durable, until_s = scene.durable, time.monotonic() + loss_s
        while time.monotonic() < until_s or (scene.durable == durable and time.monotonic() < until_s + PATIENCE_S):
            scene.trickle()
            time.sleep(0.02)
        through_loss = scene.durable - durable
        lost = net.rule()
        progress_s(scene)
        net.rule("counter drop")
        began_s = time.monotonic()
        heard = _partitioned(scene, partition_s)
        stopped = net.rule()
        silent_s = time.monotonic() - began_s
        healed_s = progress_s(scene)
        scene.calm_end()
    assert lost, "no packet was lost"
    assert through_loss, "nothing became durable while packets were lost"
    assert stopped, "no packet was stopped by the partition"
    assert heard == 0, f"{heard} batches were told to be durable through a partition"
    # A connection that has stood it out is heard at TCP's next attempt: they come at doubling intervals.
    within_s = max(RECONNECT_S, silent_s if silent_s < KEPT_S else 0.0) + SLACK * before
    assert healed_s < within_s, f"{healed_s:.1f} s until the clients were heard again, {before:.2f} s before"
    return {
        "packets lost": lost,
        "durable while 20 % were lost": through_loss,
        "packets stopped by the partition": stopped,
        "s until heard after the partition": round(healed_s, 2),
        "before": round(before, 2),
        "batches": sum(len(learner.batches) for learner in scene.learners),
        "batches lost": 0,
    }


def _partitioned(scene: Scene, partition_s: float) -> int:
    """Batches that clients hear to be durable all the same, once they have read what had arrived before: that is when
    they have heard nothing for a third of the time."""
    began_s = still_s = time.monotonic()
    durable = scene.durable
    while time.monotonic() - still_s < partition_s / 3:
        assert time.monotonic() - began_s < PATIENCE_S, "they hear on and on"
        scene.trickle()
        time.sleep(0.05)
        if scene.durable != durable:
            durable, still_s = scene.durable, time.monotonic()
    until_s = max(began_s + partition_s, time.monotonic() + partition_s / 3)
    while time.monotonic() < until_s:
        scene.trickle()
        time.sleep(0.05)
    return scene.durable - durable
