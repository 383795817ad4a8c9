"""One real server, client and tiny backbone for each module that asks for them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests import tiny
from tests.e2e.server_calls import Stubs
from tests.faults.forked import ForkedServer
from tests.real_server import RealServer

from everlearn_client import Client


@pytest.fixture(scope="session")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ONNX file, [N, 3, 16, 16] -> [N, 16]."""
    return tiny.write_backbone(tmp_path_factory.mktemp("backbone"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    """A process of its own for each module."""
    with ForkedServer(tmp_path_factory.mktemp("server") / "data") as running:
        yield running


@pytest.fixture(scope="module")
def client(server: RealServer) -> Iterator[Client]:
    """The SDK."""
    with server.client(client_id="tester") as connected:
        yield connected


@pytest.fixture(scope="module")
def stubs(server: RealServer) -> Iterator[Stubs]:
    """Below the SDK."""
    with Stubs(server.address) as connected:
        yield connected
