"""kill -9 while a trunk in 8 bits is made: nothing was durable, all is learned once, on one trunk for good."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from tests import tiny
from tests.real_server import RealServer

from everlearn_client import Client
from everlearn_client.errors import EverlearnClientError
from everlearn_protos.v1 import models_pb2

FAULTY = str(Path(__file__).with_name("calibrating_faulty.py"))
SAMPLES = 8 * 8
DECLARED = {"samples": 48}


def batches() -> list[tuple[npt.NDArray[np.uint8], list[str]]]:
    return [(tiny.images(8, turn % 3, seed=turn), [f"c{turn % 3}"] * 8) for turn in range(8)]


def status_of(client: Client) -> models_pb2.ModelStatus:
    return client.models.get("tiny").status


def killed_in(server: RealServer, folder: Path, fault: str) -> str:
    """Streams until the server dies at that point, and starts it again as it should be; the declaration."""
    text = tiny.declaration(tiny.write_backbone(folder), int8_trunk=DECLARED)
    server.declare(text)
    server.terminate()
    plain, server.program = server.program, [FAULTY, fault]
    server.start()
    with server.client(client_id="teacher") as client, pytest.raises(EverlearnClientError):
        client.learn("tiny", batches(), first_sequence=1, retry_for_s=1.0)
    assert server.wait() == -signal.SIGKILL
    server.program = plain
    server.start()
    return text


def learned_twice_over(client: Client) -> models_pb2.ModelStatus:
    """What there is once the client has sent everything again, and once more."""
    for _ in range(2):
        client.learn("tiny", batches(), first_sequence=1)
    return status_of(client)


@pytest.mark.parametrize("point", ["counted", "made", "stored", "named"])
def test_what_was_on_its_way_is_learned_once_whenever_the_server_dies(tmp_path: Path, point: str) -> None:
    with RealServer(tmp_path / "data") as server:
        killed_in(server, tmp_path, point)
        with server.client(client_id="teacher") as client:
            before = status_of(client)
            assert before.sample_count == 0
            assert before.int8.calibrated_on == (48 if point == "named" else 0)
            after = learned_twice_over(client)
            assert (after.sample_count, after.int8.calibrated_on) == (SAMPLES, 48)
            if point == "named":
                assert after.trunk_digest == before.trunk_digest
        server.kill()
        server.start()
        with server.client(client_id="teacher") as client:
            again = learned_twice_over(client)
            assert (again.trunk_digest, again.memory_digest) == (after.trunk_digest, after.memory_digest)
            assert client.predict("tiny", tiny.images(1, 1)).top[0][0].label == "c1"


def test_a_server_that_calls_counted_images_durable_is_found_out(tmp_path: Path) -> None:
    with RealServer(tmp_path / "data") as server:
        killed_in(server, tmp_path, "durable")
        with server.client(client_id="teacher") as client, pytest.raises((AssertionError, EverlearnClientError)):
            assert learned_twice_over(client).sample_count == SAMPLES


def test_where_no_trunk_can_be_made_the_model_says_so_and_learns_nothing(tmp_path: Path) -> None:
    text = tiny.declaration(tiny.write_backbone(tmp_path), int8_trunk=DECLARED)
    with RealServer(tmp_path / "data", program=[FAULTY, "refuses"]) as server:
        server.declare(text)
        with server.client(client_id="teacher") as client:
            with pytest.raises(EverlearnClientError):
                client.learn("tiny", batches(), retry_for_s=5.0)
            model = client.models.get("tiny")
            assert model.status.state == models_pb2.ModelStatus.FAILED
            assert "same for every image" in model.status.conditions[0].message
        server.terminate()
        server.program = ["-m", "everlearn_server.cli"]
        server.start()
        with server.client(client_id="teacher") as client:  # it calibrates anew, on what comes again
            assert learned_twice_over(client).sample_count == SAMPLES
        server.terminate()
        check = [sys.executable, "-m", "everlearn_server.cli", "check", "--data", str(tmp_path / "data")]
        assert subprocess.run(check, check=False, timeout=300).returncode == 0


def test_a_trunk_that_is_damaged_is_made_again_as_it_was_and_a_model_that_has_learned_keeps_it(tmp_path: Path) -> None:
    text = tiny.declaration(tiny.write_backbone(tmp_path), int8_trunk=DECLARED)
    with RealServer(tmp_path / "data") as server:
        server.declare(text)
        with server.client(client_id="teacher") as client:
            client.learn("tiny", batches())
            before = status_of(client)
        server.terminate()
        (blob,) = (
            path for path in (tmp_path / "data" / "blobs").rglob("*") if path.name.endswith(before.trunk_digest[-20:])
        )
        blob.chmod(0o600)
        blob.write_bytes(b"spoiled")
        server.start()
        with server.client(client_id="teacher") as client:
            assert status_of(client).conditions[0].reason == "DATA_LOSS"
            client.models.apply(text)
            after = status_of(client)
            assert (after.trunk_digest, after.memory_digest) == (before.trunk_digest, before.memory_digest)
            assert (after.sample_count, after.int8.calibrated_on) == (SAMPLES, 48)
            # Neither does a declaration that leaves the trunk alone make another one.
            client.models.apply(
                tiny.declaration(tiny.write_backbone(tmp_path), int8_trunk=DECLARED, gate={"min_samples": 2})
            )
            assert status_of(client).trunk_digest == before.trunk_digest
            # And a new lineage begins with a trunk of its own.
            other = tiny.declaration(tiny.write_backbone(tmp_path), int8_trunk={"samples": 32})
            client.models.apply(other, allow_replace=True)
            assert (status_of(client).sample_count, status_of(client).int8.calibrated_on) == (0, 0)
            client.models.delete("tiny")
        server.terminate()
        with closing(sqlite3.connect(tmp_path / "data" / "everlearn.sqlite")) as database:
            manifests = [row[0] for row in database.execute("select manifest from trunk")]
        assert not any(b"int8.ranges" in bytes(manifest) for manifest in manifests)
        assert manifests
