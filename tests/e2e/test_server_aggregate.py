"""Tier `aggregate` through the real server: what waits, what clients hear, what nobody is told of few."""

from __future__ import annotations

import asyncio
import json
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits
from tests.e2e import impatient_server
from tests.e2e.server_calls import Stubs
from tests.e2e.server_calls import batch as message
from tests.real_server import RealServer
from typer.testing import CliRunner

from everlearn_client import AsyncClient, Client, FailedPrecondition, Held, Tensors
from everlearn_client.cli import exit_codes
from everlearn_client.cli.app import app
from everlearn_protos.arrays import to_tensor
from everlearn_protos.v1 import tensor_pb2

PRIVACY = {"tier": "aggregate", "min_samples": 64, "min_clients": 1, "min_class_samples": 16}
PIXELS, DIGITS = load_digits(return_X_y=True)


def declaration(name: str, **changes: Any) -> str:
    read = {"modality": "tensor", "shape": [64], "range": [0.0, 16.0]}
    spec = {"backbone": {"source": "identity"}, "input": read, "privacy": PRIVACY, **changes}
    return json.dumps({"metadata": {"name": name}, "spec": spec})


def batch(at: int, count: int, *, label: str = "") -> tuple[Tensors, list[str]]:
    values = PIXELS[at : at + count].astype(np.float32)
    return Tensors(values), [label or f"digit {digit}" for digit in DIGITS[at : at + count]]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    folder = tmp_path_factory.mktemp("server") / "data"
    with RealServer(folder, program=[str(Path(impatient_server.__file__))]) as running:
        yield running


@pytest.fixture
def name(server: RealServer, request: pytest.FixtureRequest) -> str:
    chosen = f"m{zlib.crc32(request.node.name.encode())}"
    server.declare(declaration(chosen))
    return chosen


def status(client: Client, name: str) -> Any:
    return client.models.get(name).status


def test_what_is_below_the_minimum_is_held_said_so_and_kept_for_the_next_call(client: Client, name: str) -> None:
    with pytest.raises(Held, match=r"sequences 1 to 3 are held, not durable: 48 samples of 1 client wait for 16 more"):
        client.learn(name, [batch(16 * n, 16) for n in range(3)])
    assert status(client, name).sample_count == 0
    (row,) = client.models.clients(name)
    assert (row.samples, row.tested, row.recent_tested, row.last_sequence) == (0, 0, 0, 0)
    report = client.learn(name, [batch(48, 16)])
    assert (report.durable_batches, report.durable_samples, report.durable_sequence, report.duplicates) == (4, 64, 4, 3)
    assert status(client, name).sample_count == 64


def test_many_samples_are_durable_in_steps_and_the_rest_is_held(client: Client, name: str) -> None:
    with pytest.raises(Held) as caught:
        client.learn(name, [batch(8 * n, 8) for n in range(30)], window=2)
    assert "samples of 1 client wait for" in str(caught.value)
    learned = status(client, name).sample_count
    assert 64 <= learned < 240
    assert (240 - learned) < 64
    client.learn(name, [batch(240, 64)])
    assert status(client, name).sample_count == 304


def test_a_crash_loses_what_was_held_and_the_next_call_brings_it_again(server: RealServer, name: str) -> None:
    with server.client(client_id="crashed") as client:
        client.learn(name, [batch(0, 64)])
        with pytest.raises(Held):
            client.learn(name, [batch(64, 40)])
        server.kill()
        server.start()
        assert status(client, name).sample_count == 64
        report = client.learn(name, [batch(104, 40)])
        assert (report.durable_samples, report.duplicates) == (80, 0)
        assert status(client, name).sample_count == 144


def test_an_orderly_end_commits_nothing_below_the_minimum(server: RealServer, name: str) -> None:
    with server.client(client_id="ended") as client:
        with pytest.raises(Held):
            client.learn(name, [batch(0, 63)])
        server.restart()
        assert status(client, name).sample_count == 0
        assert client.learn(name, [batch(63, 1)]).durable_samples == 64


def test_a_new_batch_of_a_process_that_kept_nothing_follows_what_is_held(server: RealServer, name: str) -> None:
    with server.client(client_id="forgetful") as first, pytest.raises(Held):
        first.learn(name, [batch(0, 40)])
    with server.client(client_id="forgetful") as second:
        report = second.learn(name, [batch(40, 40)])
        assert (report.durable_sequence, report.duplicates) == (2, 0)
        assert status(second, name).sample_count == 80


def test_another_batch_under_a_number_that_is_held_is_refused_in_words(server: RealServer, name: str) -> None:
    with server.client(client_id="numbered") as client:
        with pytest.raises(Held):
            client.learn(name, [batch(0, 40)], first_sequence=1)
        with pytest.raises(FailedPrecondition, match="sequence 1 is held with another content") as caught:
            client.learn(name, [batch(100, 40)], first_sequence=1)
        assert caught.value.reason == "SEQUENCE_REUSED"
        report = client.learn(name, [batch(0, 40), batch(40, 24)], first_sequence=1)
        assert report.durable_samples == 64


def test_samples_of_others_release_what_is_held_and_one_client_alone_never_does(server: RealServer) -> None:
    server.declare(declaration("shared", privacy={**PRIVACY, "min_clients": 2}))
    with server.client(client_id="one") as one, server.client(client_id="other") as other:
        with pytest.raises(Held, match="200 samples of 1 client wait for samples of 1 more client"):
            one.learn("shared", [batch(0, 100), batch(100, 100)])
        with pytest.raises(Held, match="samples of 1 more client"):  # a window that is full does not wait for ever
            one.learn("shared", (batch(10 * n, 10) for n in range(40)), window=8)
        assert status(one, "shared").sample_count == 0
        other.learn("shared", [batch(200, 1)])
        assert status(other, "shared").sample_count > 200


def test_no_class_of_few_is_listed_predicted_reported_or_exported(client: Client, name: str, tmp_path: Path) -> None:
    client.learn(name, [batch(0, 300), batch(300, 15, label="rare"), batch(320, 100)])
    told = client.models.get(name)
    common = {f"digit {digit}" for digit in range(10)}
    assert set(told.status.labels) == common
    assert told.status.sample_count == 415
    assert min(told.status.samples_per_class) >= 16
    assert {row.label for row in told.status.report.classes} <= {*common, "\x1f"}
    assert "rare" not in str(told)
    predicted = client.predict(name, Tensors(PIXELS[300:315].astype(np.float32)), top_k=11)
    assert {row.label for top in predicted.top for row in top} == common
    client.download(client.export(name), tmp_path)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files
    assert all(b"rare" not in path.read_bytes() for path in files)
    client.learn(name, [batch(420, 63), batch(500, 1, label="rare")])
    assert "rare" in client.models.get(name).status.labels  # the control: it was there all the while


def tensors(at: int, count: int) -> tensor_pb2.Samples:
    return tensor_pb2.Samples(tensors=to_tensor(batch(at, count)[0].values_N))


def test_clients_are_told_of_the_last_commit_alone(stubs: Stubs, name: str) -> None:
    with stubs.learn(name, "watcher") as stream:
        assert (stream.opened.min_samples, stream.opened.min_clients) == (64, 1)
        for sequence in (1, 2):
            stream.send(message(sequence, tensors(16 * sequence, 16), batch(16 * sequence, 16)[1]))
            received = stream.hear("received")
            assert (received.sequence, received.samples) == (sequence, 16)
            assert (received.prequential.tested, received.classes_seen) == (0, 0)


def test_rejections_alone_are_durable_at_once(stubs: Stubs, name: str) -> None:
    with stubs.learn(name, "wrong") as stream:
        stream.send(message(1, tensors(0, 16), ["too", "few"]))
        assert stream.hear("rejected").sequence == 1
        assert stream.hear("durable").sequence == 1
        stream.send(message(2, tensors(0, 16), batch(0, 16)[1]))
        stream.send(message(3, tensors(0, 16), ["too", "few"]))
        assert [stream.hear(kind).sequence for kind in ("received", "rejected")] == [2, 3]
        time.sleep(0.3)
    with stubs.learn(name, "wrong") as again:  # a rejection behind samples that wait, waits with them
        assert (again.opened.durable_sequence, again.opened.held_sequence) == (1, 3)


def test_tightening_holds_at_once_and_takes_what_showed_few_out_of_service(server: RealServer, client: Client) -> None:
    free = {"tier": "no_raw"}
    server.declare(declaration("tightened", privacy=free))
    client.learn("tightened", [batch(0, 200), batch(200, 5, label="rare")])
    old = client.predict("tightened", batch(0, 1)[0]).version.rpartition("/")[2]
    client.export("tightened")
    assert "rare" in client.models.get("tightened").status.labels
    client.models.apply(declaration("tightened"))
    assert "rare" not in client.models.get("tightened").status.labels
    with pytest.raises(FailedPrecondition, match="shows classes of fewer than 16 samples"):
        client.predict("tightened", batch(0, 1)[0], version=old)
    assert list(client.exports("tightened")) == []
    deadline_s = time.monotonic() + 120
    while time.monotonic() < deadline_s:
        try:
            predicted = client.predict("tightened", batch(0, 1)[0], top_k=11)
            break
        except FailedPrecondition:  # a head is being solved
            time.sleep(0.05)
    assert {row.label for row in predicted.top[0]} == {f"digit {digit}" for digit in range(10)}
    with pytest.raises(Held, match="10 samples of 1 client wait for 54 more"):
        client.learn("tightened", [batch(300, 10)])
    told = client.models.get("tightened").status
    assert (told.sample_count, told.held) == (205, "10 samples of 1 client wait for 54 more")
    client.models.apply(declaration("tightened", privacy=free), allow_loosen_retention=True)
    deadline_s = time.monotonic() + 120
    while status(client, "tightened").held or status(client, "tightened").sample_count < 215:
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


def test_the_card_and_describe_say_what_is_promised(client: Client, name: str, tmp_path: Path) -> None:
    client.learn(name, [batch(0, 200)])
    client.download(client.export(name), tmp_path)
    card = next(tmp_path.rglob("*.md")).read_text()
    lines = list(client.models.get(name).status.privacy)
    assert lines[0] == "tier: aggregate (min_samples 64, min_clients 1, min_class_samples 16)"
    assert "## Privacy" in card
    assert all(line[1:] in card for line in lines)


def test_the_command_line_says_what_is_held_and_doctor_tries_a_sample_without_minima(
    server: RealServer, client: Client, name: str, tmp_path: Path
) -> None:
    data = tmp_path / "digits.npz"
    np.savez(data, x=PIXELS[:150].astype(np.float32), y=np.array([f"digit {digit}" for digit in DIGITS[:150]]))
    shown = CliRunner().invoke(app, f"learn {name} {data} --limit 40 --client cli --server {server.address}")
    assert shown.exit_code == exit_codes.REFUSED, shown.output
    assert "40 samples of 1 client wait for 24 more" in " ".join(shown.output.split())
    assert "wait for 24 more" in CliRunner().invoke(app, f"describe {name} --server {server.address}").output
    found = CliRunner().invoke(app, f"doctor {name} {data} -o json --server {server.address}")
    assert json.loads(found.stdout)["findings"], found.output
    assert status(client, name).sample_count == 0


def test_an_upgrade_names_no_class_of_few_and_serves_none(client: Client, name: str) -> None:
    client.learn(name, [batch(0, 300), batch(300, 5, label="rare"), batch(320, 100)])
    successor = json.loads(declaration(name))
    successor["spec"]["backbone"] = {"source": "mlp:64", "seed": 3}
    report = client.models.upgrade_backbone(
        name,
        json.dumps(successor),
        (batch(40 * n, 40)[0] for n in range(20)),
        max_drop=1.0,
        min_agreement=0.0,
        max_unseen_classes=11,
    )
    assert report.live
    assert "rare" not in str(report)
    told = client.models.get(name)
    assert told.status.sample_count == 405
    assert set(told.status.labels) == {f"digit {digit}" for digit in range(10)}
    predicted = client.predict(name, batch(300, 5)[0], top_k=11)
    assert all(row.label != "rare" for top in predicted.top for row in top)


def test_an_asyncio_client_keeps_what_is_held_too(server: RealServer, name: str) -> None:
    async def scenario() -> None:
        async with AsyncClient(server.address, client_id="async") as client:
            with pytest.raises(Held, match="30 samples of 1 client wait for 34 more"):
                await client.learn(name, [batch(0, 30)])
            report = await client.learn(name, [batch(30, 34)])
            assert (report.durable_samples, report.durable_sequence, report.duplicates) == (64, 2, 1)

    asyncio.run(scenario())
