"""A device and a real server: offline and back again, new versions, broken ones, and power that goes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from tests import tiny
from tests.real_server import RealServer

from everlearn_client import Client, DataLoss, FailedPrecondition, InvalidArgument
from everlearn_client.edge import EdgeModel, EdgeSettings, SendPolicy

LABELS = ("ash", "birch", "cedar")
QUICK = EdgeSettings(
    policy=SendPolicy(duplicate_bits=None),
    watch_every_s=0.1,
    send_after_s=0.05,
    confirm_after_s=0.0,
    retry_for_s=0.5,
    longest_pause_s=0.5,
)
WAIT_S = 240.0


@pytest.fixture
def device_client(server: RealServer) -> Iterator[Client]:
    with server.client(client_id="device-1") as connected:
        yield connected


def declare(server: RealServer, backbone: Path, name: str) -> None:
    server.declare(tiny.declaration(backbone, name=name))
    with server.client() as teacher:
        teach(teacher, name, seed=0)


def teach(client: Client, name: str, *, seed: int) -> None:
    batches = [(tiny.images(20, index, seed=seed), [label] * 20) for index, label in enumerate(LABELS)]
    client.learn(name, batches)


def device(name: str, folder: Path, client: Client, settings: EdgeSettings = QUICK) -> EdgeModel:
    return EdgeModel(name, folder=folder, client=client, settings=settings)


def until(condition: object) -> None:
    assert callable(condition)
    give_up_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < give_up_s, "it did not come to pass"
        time.sleep(0.02)


def test_a_device_answers_as_the_server_does_and_what_it_saw_offline_is_learned_once(
    server: RealServer, device_client: Client, backbone: Path, tmp_path: Path
) -> None:
    declare(server, backbone, "offline")
    with device("offline", tmp_path, device_client) as edge:
        until(lambda: edge.version)
        samples = np.concatenate([tiny.images(3, index, seed=5) for index in range(3)])
        served = device_client.predict("offline", samples, scores=True, version=int(edge.version.rpartition("/")[2]))
        here = edge.predict(samples, scores=True)
        assert [each[0].label for each in here.top] == [each[0].label for each in served.top]
        assert here.labels == served.labels
        assert here.scores_NC is not None
        np.testing.assert_allclose(here.scores_NC, served.scores_NC, atol=1e-3)
        before = device_client.models.get("offline").status.sample_count
        server.terminate()
        for number, image in enumerate(tiny.images(30, 7)):
            assert edge.observe(image, "dogwood" if number % 2 else "elm") == "send"
        assert edge.predict(samples).top == here.top
        assert edge.spool.waiting + edge.spool.assigned == 30
        server.start()
        until(lambda: edge.spool.counts.get("durable") == (30, 30))
        until(lambda: "dogwood" in edge.predict(samples).labels)  # the version that knows it has come down
        assert edge.spool.bytes_on_disk == 0
    after = device_client.models.get("offline").status
    assert after.sample_count - before == 30


def test_a_device_that_never_met_a_server_says_so_and_keeps_what_it_sees(device_client: Client, tmp_path: Path) -> None:
    edge = device("nothing", tmp_path, device_client)
    with pytest.raises(FailedPrecondition, match="no model on this device"):
        edge.predict(tiny.images(1, 0))
    assert edge.observe(tiny.images(1, 0)[0], "ash") == "send"
    edge.close()
    again = device("nothing", tmp_path, device_client)
    assert again.spool.waiting == 1
    again.close()


def test_a_caller_that_gives_what_no_version_takes_is_not_held_against_the_version(
    server: RealServer, device_client: Client, backbone: Path, tmp_path: Path
) -> None:
    declare(server, backbone, "callers")
    with device("callers", tmp_path, device_client) as edge:
        until(lambda: edge.version)
        with pytest.raises(InvalidArgument, match="here the model takes uint8"):
            edge.predict(np.zeros((1, 32, 32, 3), np.float32))
        assert edge.health.messages(with_labels=False) == []
        with pytest.raises(
            InvalidArgument, match="the model does not take"
        ):  # a form that this version may have broken
            edge.predict(np.zeros((1, 5, 5, 1), np.uint8))
        assert [use.failed for use in edge.health.messages(with_labels=False)] == [1]


def test_a_version_that_fails_its_self_test_is_never_run_and_never_taken_again(
    server: RealServer, device_client: Client, backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    declare(server, backbone, "selftest")
    edge = device("selftest", tmp_path, device_client)
    assert edge.pull()
    good = edge.version
    edge.predict(tiny.images(1, 0))
    edge.pull()  # confirms
    teach(device_client, "selftest", seed=1)
    real = np.load

    def other_scores(path: Path, **options: bool) -> object:
        assert options == {"allow_pickle": False}
        with real(path, **options) as archive:
            arrays = {name: archive[name] for name in archive.files}
        arrays["expected"] = arrays["expected"][:, ::-1] + 0.5
        np.savez(tmp_path / "wrong.npz", **arrays)
        return real(tmp_path / "wrong.npz", **options)

    monkeypatch.setattr(np, "load", other_scores)
    with pytest.raises(DataLoss, match="scores of a probe differ"):
        edge.pull()
    assert edge.version == good
    assert not edge.pull()
    monkeypatch.undo()
    edge.predict(tiny.images(1, 0))
    edge.close()
    with_next = device("selftest", tmp_path, device_client)
    assert with_next.version == good
    assert not with_next.pull()  # remembered over restarts
    teach(device_client, "selftest", seed=2)
    assert with_next.pull()
    with_next.close()


def test_a_version_that_crashes_the_program_again_and_again_gives_way_to_the_one_before(
    server: RealServer, device_client: Client, backbone: Path, tmp_path: Path
) -> None:
    declare(server, backbone, "loop")
    first = device("loop", tmp_path, device_client)
    first.pull()
    good = first.version
    first.predict(tiny.images(1, 0))
    teach(device_client, "loop", seed=1)
    assert first.pull()
    bad = first.version
    assert bad != good
    first._spool.close()  # the program dies: nothing is confirmed
    for start in range(1, 5):
        crashing = device("loop", tmp_path, device_client)
        assert crashing.version == (bad if start < 3 else good), start
        if start < 3:
            assert not crashing.pull()  # on trial: the slot it would fall back to is left alone
        crashing._spool.close()
    back = device("loop", tmp_path, device_client)
    assert back.version == good
    assert not back.pull()
    back.close()


def test_a_slot_that_rotted_is_not_run_and_comes_again_whole(
    server: RealServer, device_client: Client, backbone: Path, tmp_path: Path
) -> None:
    declare(server, backbone, "rot")
    edge = device("rot", tmp_path, device_client)
    edge.pull()
    edge.predict(tiny.images(1, 0))
    edge.close()
    (path,) = (tmp_path / "model").rglob("model.onnx")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    edge = device("rot", tmp_path, device_client)
    assert edge.version == ""
    assert edge.pull()
    assert edge.predict(tiny.images(1, 0)).top
    edge.close()


def test_whoever_sends_now_takes_turns_with_the_thread_that_sends(
    server: RealServer, device_client: Client, backbone: Path, tmp_path: Path
) -> None:
    declare(server, backbone, "turns")
    before = device_client.models.get("turns").status.sample_count
    with device("turns", tmp_path, device_client) as edge, ThreadPoolExecutor(3) as pool:
        flushing = []
        for image in tiny.images(60, 3):
            edge.put(image[None], ["ash"])
            flushing.append(pool.submit(edge.flush))
        for flushed in flushing:
            flushed.result()  # not Fenced by a stream of its own
        until(lambda: edge.spool.counts.get("durable") == (60, 60))
    assert device_client.models.get("turns").status.sample_count == before + 60


DEVICE = """
import sys
from pathlib import Path
from tests import tiny
from everlearn_client import Client
from everlearn_client.edge import EdgeModel, EdgeSettings, SendPolicy
target, folder, life = sys.argv[1], sys.argv[2], int(sys.argv[3])
settings = EdgeSettings(policy=SendPolicy(duplicate_bits=None), watch_every_s=0.1, send_after_s=0.01, retry_for_s=1)
client = Client(target, client_id="device-9")
with EdgeModel("killed", folder=folder, client=client, settings=settings) as edge:
    for number, image in enumerate(tiny.images(100000, life)):
        edge.put(image[None], [f"life-{life}"])
        sys.stdout.write(f"{number}\\n"); sys.stdout.flush()
"""


def test_a_device_killed_in_the_middle_of_sending_loses_nothing_and_nothing_counts_twice(
    server: RealServer, device_client: Client, backbone: Path, tmp_path: Path
) -> None:
    declare(server, backbone, "killed")
    before = device_client.models.get("killed").status.sample_count
    told = 0
    for life in range(2):
        command = [sys.executable, "-c", DEVICE.replace("100000", "2000"), server.address, str(tmp_path), str(life)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path.cwd()), *sys.path])}
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as child:
            assert child.stdout is not None
            for _ in range(40):
                assert child.stdout.readline()
            child.send_signal(signal.SIGKILL)
            told += 40 + sum(bool(line) for line in child.stdout.read().split("\n")[:-1])
    with server.client(client_id="device-9") as its_client:
        edge = device("killed", tmp_path, its_client)
        edge.flush()
        counts = edge.spool.counts
        edge.close()
    learned = device_client.models.get("killed").status.sample_count - before
    assert told <= learned <= told + 2  # a put that was cut off before it returned may be there
    assert "ROT" not in counts
    assert "SHARED_ID" not in counts
