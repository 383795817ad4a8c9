"""What happens to learners and callers while an administrator changes or deletes the model under them."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from tests import tiny
from tests.e2e.server_calls import Stubs, encoded
from tests.real_server import RealServer

from everlearn_client import Client, NotFound

GOOD = tiny.images(2, 0)
SLOW = [encoded(np.full((1200, 1200, 3), 9, np.uint8))] * 2


@pytest.mark.parametrize("samples", [GOOD, SLOW], ids=["quick", "slow"])
def test_a_model_deleted_under_a_stream_ends_it_and_no_drain_hangs(
    server: RealServer, client: Client, stubs: Stubs, backbone: Path, samples: Any
) -> None:
    for turn in range(3):
        server.declare(tiny.declaration(backbone, name="gone"))
        with stubs.learn("gone", "drainer") as stream:
            for sequence in range(1, 9):
                stream.batch(sequence, samples, ["a", "b"])
            time.sleep(0.02 * turn)
            client.models.delete("gone")
            ended = _end(stream)
        assert ended in ("OK", "UNAVAILABLE", "NOT_FOUND", "ABORTED"), ended


def _end(stream: Any) -> str:
    try:
        stream.finish()
    except grpc.RpcError as error:
        return str(error.code().name)
    return "OK"


def test_a_learner_of_a_deleted_model_is_told_so(server: RealServer, client: Client, backbone: Path) -> None:
    server.declare(tiny.declaration(backbone, name="lost"))
    sent, gone = threading.Event(), threading.Event()

    def batches() -> Iterator[tuple[Any, list[str]]]:
        left = 100  # and as many as it takes until the model is gone
        while left:
            time.sleep(0.005)
            left -= gone.is_set()
            yield GOOD, ["a", "b"]
            sent.set()

    deleter = threading.Thread(target=lambda: (sent.wait(120), client.models.delete("lost"), gone.set()))
    deleter.start()
    with pytest.raises(NotFound):
        client.learn("lost", batches(), retry_for_s=120)
    deleter.join()


def test_a_learner_goes_on_through_a_replacement_and_nothing_of_before_is_kept(
    server: RealServer, client: Client, backbone: Path, tmp_path: Path
) -> None:
    server.declare(tiny.declaration(backbone, name="swapped"))
    other = tiny.declaration(tiny.write_backbone(tmp_path, dim=24), name="swapped")
    taken, replaced = threading.Event(), threading.Event()
    sent = 0

    def batches() -> Iterator[tuple[Any, list[str]]]:
        nonlocal sent
        left = 100  # and as many as it takes until the replacement is there
        while left > 0:
            if sent == 20:
                taken.set()
            time.sleep(0.01)
            left -= replaced.is_set()
            sent += 1
            yield GOOD, ["before", "before"] if sent <= 20 else ["after", "after"]

    def replace() -> None:
        taken.wait(120)
        try:
            client.models.apply(other, allow_replace=True)
        finally:
            replaced.set()

    replacer = threading.Thread(target=replace)
    replacer.start()
    with server.client(client_id="persistent") as learner:
        report = learner.learn("swapped", batches(), retry_for_s=120)
    replacer.join()
    assert report.durable_sequence == sent
    assert report.reconnects >= 1
    status = client.models.get("swapped").status
    assert status.feature_dim == 24
    assert 0 < status.sample_count < 2 * sent
    assert list(status.labels) == ["after"]


def test_a_changed_head_under_a_stream_disturbs_nobody(server: RealServer, client: Client, backbone: Path) -> None:
    server.declare(tiny.declaration(backbone, name="steady"))
    client.learn("steady", [(tiny.images(4, label), [f"c{label}"] * 4) for label in range(3)])
    for kind in ("lda", "ncm", "balanced_ridge"):
        done = threading.Event()
        heads: set[str] = set()

        def watch(done: threading.Event = done, heads: set[str] = heads) -> None:
            while not done.is_set():
                heads.add(client.models.version("steady", "stable").head)
                assert client.predict("steady", GOOD).top

        watcher = threading.Thread(target=watch)
        watcher.start()
        client.models.apply(tiny.declaration(backbone, name="steady", head={"kind": kind}))
        batches = [(tiny.images(4, turn % 3, seed=turn), [f"c{turn % 3}"] * 4) for turn in range(20)]
        report = client.learn("steady", batches)
        done.set()
        watcher.join()
        assert (report.durable_batches, report.reconnects) == (20, 0)
        assert client.models.version("steady", "stable").head == kind
    assert client.models.get("steady").status.sample_count == 12 + 3 * 80
