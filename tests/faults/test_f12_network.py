"""Row F12: connections that are cut, reset, late, slow, silent; nothing is lost and nothing counted twice."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tests.faults.forked import ForkedServer
from tests.faults.parts import bad_network, network_namespace
from tests.faults.parts.bad_network import progress_s
from tests.faults.proxy import Proxy
from tests.faults.scene import Scene

from everlearn_client._channel import OPTIONS
from everlearn_server.app import KEEPALIVE

CLOSED_S = 30.0
MS = ("grpc.keepalive_time_ms", "grpc.keepalive_timeout_ms", "grpc.http2.ping_timeout_ms")


def test_f12_resets_latency_cuts_and_a_slow_line_lose_nothing(tmp_path: Path) -> None:
    bad_network.run(tmp_path, **bad_network.SHORT)


def test_f12_lost_packets_and_a_partition_lose_nothing(tmp_path: Path) -> None:
    network_namespace.run(tmp_path, **network_namespace.SHORT)


@pytest.mark.slow
def test_f12_a_half_open_connection_is_closed_by_both_sides_within_30_s(tmp_path: Path) -> None:
    with Proxy() as proxy:
        scene = Scene(tmp_path, batches=4000, address=proxy.address)
        proxy.target = scene.server.address
        scene.server.start()
        scene.go(freely=False)
        progress_s(scene)
        # One more client, which has no call under way: a server pings those only where it is told to.
        idle = grpc.insecure_channel(proxy.address, options=[*OPTIONS, ("grpc.use_local_subchannel_pool", 1)])
        health_pb2_grpc.HealthStub(idle).Check(health_pb2.HealthCheckRequest(), timeout=10)
        began_s = time.monotonic()
        silent = proxy.silence()
        assert silent >= 2
        # The clients come back over new connections, by themselves; the old ones are closed from both ends.
        progress_s(scene, patience_s=CLOSED_S)
        client_s = time.monotonic() - began_s
        while proxy.silent_ends > 0:
            assert time.monotonic() - began_s < CLOSED_S, f"{proxy.silent_ends} ends of {2 * silent} are open still"
            time.sleep(0.05)
        server_s = time.monotonic() - began_s
        idle.close()
        scene.calm_end()
    print(f"closed by the client within {client_s:.1f} s, by both within {server_s:.1f} s")


def test_control_with_keepalive_at_grpcs_defaults_nothing_is_noticed(tmp_path: Path) -> None:
    """Pings ten times as often as ours close a silent connection from both ends; without, both stand for two hours."""
    brisk = [(name, value // 10 if name in MS else value) for name, value in OPTIONS if isinstance(value, int)]
    with ExitStack() as stack:
        heeded, unheeded = stack.enter_context(Proxy()), stack.enter_context(Proxy())
        silenced(stack, tmp_path / "brisk", heeded, fault="brisk", options=brisk)
        silenced(stack, tmp_path / "defaults", unheeded, fault="no_keepalive", options=[])
        began_s = time.monotonic()
        while heeded.silent_ends > 0:
            assert time.monotonic() - began_s < CLOSED_S, "pings do not close a silent connection"
            time.sleep(0.05)
        time.sleep(1)
        assert unheeded.silent_ends == 2


def silenced(stack: ExitStack, folder: Path, proxy: Proxy, *, fault: str, options: list[tuple[str, int]]) -> None:
    """A server and a client of it that has no call under way: nothing comes through between them any more."""
    folder.mkdir()
    server = ForkedServer(folder / "data")
    server.fault = fault
    stack.callback(server.end)
    server.start()
    proxy.target = server.address
    channel = grpc.insecure_channel(proxy.address, options=[*options, ("grpc.use_local_subchannel_pool", 1)])
    stack.callback(channel.close)
    health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
    assert proxy.silence() == 1


def test_f12_a_client_pings_no_more_often_than_its_server_allows() -> None:
    """One that does is sent away."""
    assert dict(OPTIONS)["grpc.keepalive_time_ms"] >= dict(KEEPALIVE)["grpc.http2.min_ping_interval_without_data_ms"]
