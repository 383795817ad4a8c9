"""`kill -9` in the middle of an upgrade: before its one transaction the old model is whole, after it the new one."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from tests import tiny
from tests.real_server import RealServer

from everlearn_client.errors import EverlearnClientError

FAULTY = str(Path(__file__).with_name("faulty_server.py"))


def calibration() -> Iterator[npt.NDArray[np.uint8]]:
    for turn in range(40):
        yield np.concatenate([tiny.images(2, label, seed=100 + turn) for label in range(3)])


def batches(count: int) -> list[tuple[npt.NDArray[np.uint8], list[str]]]:
    return [(tiny.images(8, turn % 3, seed=turn), [f"c{turn % 3}"] * 8) for turn in range(count)]


@pytest.mark.parametrize(("point", "moved"), [("begun", False), ("before_commit", False), ("committed", True)])
def test_a_server_killed_in_an_upgrade_comes_back_with_one_whole_model(
    tmp_path: Path, point: str, *, moved: bool
) -> None:
    old, new = tiny.write_backbone(tmp_path, 16), tiny.write_backbone(tmp_path, 24, seed=1)
    with RealServer(tmp_path / "data") as server:
        server.declare(tiny.declaration(old))
        with server.client(client_id="teacher") as client:
            client.learn("tiny", batches(20), first_sequence=1)
            before = client.models.get("tiny").status
    plain, server.program = server.program, [FAULTY, f"kill:{point}:1"]
    server.start()
    with server.client() as client, pytest.raises(EverlearnClientError):
        client.models.upgrade_backbone("tiny", tiny.declaration(new), calibration(), max_drop=0.5)
    assert server.wait() == -signal.SIGKILL
    server.program = plain
    server.start()
    with server.client(client_id="teacher") as client:
        after = client.models.get("tiny").status
        assert after.feature_dim == (24 if moved else 16)
        assert (after.memory_digest == before.memory_digest) is not moved
        assert bool(after.inexact_because) is moved
        assert (after.sample_count, list(after.labels)) == (before.sample_count, list(before.labels))
        # What was durable before is known to be, and is not counted again.
        client.learn("tiny", batches(24), first_sequence=1)
        assert client.models.get("tiny").status.sample_count == 8 * 24
        found = client.predict("tiny", np.concatenate([tiny.images(9, label, seed=900) for label in range(3)])).top
    labels = [f"c{label}" for label in range(3) for _ in range(9)]
    assert np.mean([top[0].label == label for top, label in zip(found, labels, strict=True)]) > 0.9
    assert server.terminate() == 0
