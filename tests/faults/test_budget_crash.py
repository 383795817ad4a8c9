"""Servers that end inside a commit of tier `dp`: what has been released was charged, and what was charged released."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.real_server import RealServer

from everlearn_client import Tensors
from everlearn_client.errors import Unavailable
from everlearn_server.check.folder import check

FAULTY = str(Path(__file__).with_name("faulty_server.py"))
PRIVACY = {"tier": "dp", "unit": "client", "client_samples": 16, "min_samples": 16, "noise": 4.0, "epsilon": 8.0}
DECLARATION = {
    "metadata": {"name": "private"},
    "spec": {
        "backbone": {"source": "identity"},
        "input": {"modality": "tensor", "shape": [8], "range": [0.0, 1.0]},
        "labels": ["low", "high"],
        "privacy": PRIVACY,
    },
}


def batches() -> Iterator[tuple[Tensors, list[str]]]:
    random = np.random.default_rng(0)
    for _ in range(6):
        yield Tensors(random.uniform(0, 1, (16, 8)).astype(np.float32)), ["low", "high"] * 8


@pytest.fixture
def server(tmp_path: Path) -> RealServer:
    with RealServer(tmp_path / "data") as declared:
        declared.declare(json.dumps(DECLARATION))
    return declared


def stream(server: RealServer, *, retry_for_s: float = 0) -> int:
    """Samples that are durable."""
    with server.client(client_id="ann") as client:
        client.learn("private", batches(), first_sequence=1, window=1, retry_for_s=retry_for_s)
        return client.models.get("private").status.sample_count


def killed(server: RealServer, fault: str) -> list[str]:
    """What the check finds in the folder of a server that ended by this fault in mid-stream."""
    plain, server.program = server.program, [FAULTY, fault]
    server.start()
    with pytest.raises(Unavailable):
        stream(server)
    assert server.wait() == -signal.SIGKILL, fault
    server.program = plain
    return [str(finding) for finding in check(server.folder).damaged]


def test_a_crash_at_any_point_of_a_commit_leaves_noise_and_account_in_step(server: RealServer) -> None:
    for fault in ("kill:before_commit:2", "kill:committed:1"):
        assert killed(server, fault) == [], fault
    with server:
        assert stream(server, retry_for_s=5) == 96
    assert check(server.folder).damaged == []


def test_control_an_account_in_a_transaction_of_its_own_is_caught(server: RealServer) -> None:
    [found] = killed(server, "charged_late:2")
    assert "2 releases are in the memory, and 1 were charged to the budget" in found
