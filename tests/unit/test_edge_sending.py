"""A spool emptied into a server with faults: everything counts once, and nothing stops the rest."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.fake_server import FakeServer

from everlearn_client import Batch, Client, Features, Unavailable
from everlearn_client.edge.policy import Allowance, SendPolicy
from everlearn_client.edge.sending import Drain, Drained
from everlearn_client.edge.spool import Spool


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as running:
        running.ready_model()
        yield running


@pytest.fixture
def client(server: FakeServer) -> Iterator[Client]:
    with Client(server.target, client_id="device-1") as connected:
        yield connected


def drain(spool: Spool, client: Client, *, allowance: Allowance | None = None, retry_for_s: float = 5.0) -> Drained:
    open_line = Allowance(SendPolicy(), lambda: 0.0)
    return Drain(
        spool,
        client.open_learn,
        model="digits",
        client_id=client.client_id,
        allowance=allowance or open_line,
        retry_for_s=retry_for_s,
    ).run()


def put(spool: Spool, *labels: str) -> None:
    for label in labels:
        spool.put(Batch([label.encode()], [label]))


def counted_once(server: FakeServer, *labels: str) -> None:
    assert server.labels == dict.fromkeys(labels, 1)
    assert set(server.committed.values()) == {1}


def test_what_waited_offline_is_durable_once_and_then_gone_here(
    server: FakeServer, client: Client, tmp_path: Path
) -> None:
    server.stop()
    with Spool(tmp_path) as spool:
        put(spool, *(f"n{i}" for i in range(30)))
        with pytest.raises(Unavailable):
            drain(spool, client, retry_for_s=0.1)
        assert spool.pending == 30
        server.start()
        done = drain(spool, client)
        assert (done.batches, done.stopped) == (30, "empty")
        assert spool.stats().bytes_on_disk == 0
        assert drain(spool, client).batches == 0
    counted_once(server, *(f"n{i}" for i in range(30)))


def test_cuts_lost_acknowledgements_and_reopenings_count_nothing_twice(
    server: FakeServer, client: Client, tmp_path: Path
) -> None:
    server.faults.lose_durables = 3
    server.faults.drop_after = [2, 5, 3]
    for opening in range(4):
        with Spool(tmp_path) as spool:
            put(spool, *(f"n{opening}-{i}" for i in range(10)))
            try:
                drain(spool, client, retry_for_s=0.0)
            except Unavailable:
                continue
    with Spool(tmp_path) as spool:
        drain(spool, client)
        assert spool.pending == 0
        # What became durable while nobody heard of it is counted, too.
        assert spool.stats().counts["durable"] == (40, 40)
    counted_once(server, *(f"n{opening}-{i}" for opening in range(4) for i in range(10)))


def test_a_rejected_batch_becomes_a_dead_letter_and_the_rest_is_learned(
    server: FakeServer, client: Client, tmp_path: Path
) -> None:
    server.faults.reject = {2}
    with Spool(tmp_path) as spool:
        put(spool, "a", "b", "c")
        drain(spool, client)
        assert spool.pending == 0
        (letter,) = spool.dead_letters()
        assert (letter.reason, letter.message) == ("INVALID_ARGUMENT", "not an image")
    counted_once(server, "a", "c")


def test_a_batch_that_the_server_would_have_cut_is_set_aside_and_its_place_is_filled(
    server: FakeServer, client: Client, tmp_path: Path
) -> None:
    server.max_samples = 2
    with Spool(tmp_path) as spool:
        put(spool, "a")
        spool.put(Batch([b"1", b"2", b"3"], ["x", "y", "z"]))
        put(spool, "b")
        drain(spool, client)
        assert spool.pending == 0
        (letter,) = spool.dead_letters()
        assert "3" in letter.message or "messages" in letter.message
        put(spool, "c")
        drain(spool, client)
    counted_once(server, "a", "b", "c")


def test_features_go_under_the_digest_of_their_trunk_and_apart_from_images(
    server: FakeServer, client: Client, tmp_path: Path
) -> None:
    with Spool(tmp_path) as spool:
        put(spool, "image")
        for digest in ("f00d", "f00d", "beef"):
            spool.put(Batch(Features(np.ones((1, 4), np.float32)), [digest]), feature_digest=digest)
        drain(spool, client)
        assert spool.pending == 0
    assert [each.feature_digest for each in server.opens] == ["", "", "f00d", "beef"]  # the first one only asks


def test_after_a_restored_backup_what_is_here_is_sent_again(server: FakeServer, client: Client, tmp_path: Path) -> None:
    with Spool(tmp_path) as spool:
        put(spool, "a", "b")
        drain(spool, client)
        put(spool, "c", "d")
        assert spool.give(3) is not None  # given out, and never arrived
        server.timeline = "t2"
        next(iter(server.learners.values())).durable = 0
        drain(spool, client)
        assert spool.pending == 0
        assert spool.stats().counts["UNDONE"] == (2, 0)
    assert server.labels == {"a": 1, "b": 1, "c": 1, "d": 1}


def test_a_model_that_was_made_anew_gets_what_is_here(server: FakeServer, client: Client, tmp_path: Path) -> None:
    with Spool(tmp_path) as spool:
        put(spool, "a", "b")
        drain(spool, client)
        server.learners.clear()
        put(spool, "c")
        drain(spool, client)
        assert spool.pending == 0
        assert spool.stats().counts["UNDONE"] == (2, 0)
    assert server.labels["c"] == 1


def test_a_wiped_device_loses_nothing_to_the_sequences_of_its_former_life(
    server: FakeServer, client: Client, tmp_path: Path
) -> None:
    for life in ("first", "second"):
        with Spool(tmp_path / life) as spool:
            put(spool, *(f"{life}-{i}" for i in range(3)))
            drain(spool, client)
    counted_once(server, *(f"{life}-{i}" for life in ("first", "second") for i in range(3)))


def test_a_days_bytes_stop_the_line_and_what_is_left_waits(server: FakeServer, client: Client, tmp_path: Path) -> None:
    now_s = [0.0]
    allowance = Allowance(SendPolicy(bytes_per_day=24 * 200), lambda: now_s[0])
    with Spool(tmp_path) as spool:
        put(spool, *(f"n{i}" for i in range(20)))
        first = drain(spool, client, allowance=allowance)
        assert first.stopped == "allowance"
        assert 0 < first.batches < 20
        assert first.next_bytes > 0
        now_s[0] += 86_400
        assert drain(spool, client, allowance=allowance).stopped == "empty"
    counted_once(server, *(f"n{i}" for i in range(20)))


def test_putting_in_goes_on_while_it_empties(server: FakeServer, client: Client, tmp_path: Path) -> None:
    server.faults.answer_delay_s = 0.002
    with Spool(tmp_path, max_bytes=2**20) as spool:
        put(spool, "first")
        thread = threading.Thread(target=put, args=(spool, *(f"n{i}" for i in range(40))))
        thread.start()
        while thread.is_alive() or spool.pending:
            drain(spool, client)
        thread.join()
    counted_once(server, "first", *(f"n{i}" for i in range(40)))
