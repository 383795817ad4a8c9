"""Connections and streams that are begun in numbers and never used: whoever calls in an orderly way is answered."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from tests.faults.forked import ForkedServer
from tests.faults.http2 import Flood, GoodClient, Greetings
from tests.faults.parts import floods


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkedServer]:
    with ForkedServer(tmp_path_factory.mktemp("floods") / "data") as running:
        yield running
    assert "Traceback" not in running.log, running.log[-2000:]


def test_five_hundred_half_open_connections_are_closed_in_seconds_and_delay_nobody(server: ForkedServer) -> None:
    """The control: of a server with gRPC's defaults they stand for two minutes."""
    patient = grpc.server(ThreadPoolExecutor(1))
    port = patient.add_insecure_port("127.0.0.1:0")
    patient.start()
    try:
        with Greetings(f"127.0.0.1:{port}", 20) as control:
            floods.half_open(server.address, 500)
            assert control.standing == 20
    finally:
        patient.stop(0)


def test_streams_that_are_reset_as_they_begin_make_no_good_call_fail(server: ForkedServer) -> None:
    floods.resets(server, seconds=3.0, a_second=20_000)


def test_control_where_a_connection_may_begin_any_number_of_streams_good_calls_fail(tmp_path: Path) -> None:
    server = ForkedServer(tmp_path / "data")
    server.fault = "unlimited"
    with server, GoodClient(server.address) as good:
        failed, end_s = 0, time.monotonic() + 240
        with Flood(server.address, path=floods.PATH, a_second=20_000):
            while not failed and time.monotonic() < end_s:
                try:
                    good.call_s()
                except grpc.RpcError:
                    failed += 1
        assert failed, "nobody was harmed"
