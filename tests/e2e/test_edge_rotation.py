"""A server exchanges its signing key while devices follow it, and receipts of before stay good."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests import tiny
from tests.e2e.test_edge_model import QUICK, declare, device, teach, until
from tests.real_server import RealServer
from typer.testing import CliRunner

from everlearn_client import Client, DataLoss
from everlearn_client._ed25519 import is_signed
from everlearn_client.edge import EdgeModel
from everlearn_client.edge.trust import Trust
from everlearn_client.key_chain import descendants
from everlearn_client.results import KeyRotation
from everlearn_server.command import app


@pytest.fixture
def device_client(server: RealServer) -> Iterator[Client]:
    with server.client(client_id="device-1") as connected:
        yield connected


def rotate(server: RealServer) -> str:
    done = CliRunner().invoke(app, ["rotate-signing-key", "--data", str(server.folder)])
    assert done.exit_code == 0, done.output
    return done.output


def follows(edge: EdgeModel) -> str:
    edge.predict(tiny.images(1, 0))  # a version that answers is confirmed, and makes room for the next
    return edge.version


def test_a_device_follows_a_rotation_under_way_and_one_that_slept_through_two_does_too(
    server: RealServer, device_client: Client, backbone: Path, tmp_path: Path
) -> None:
    declare(server, backbone, "rotated")
    first = device_client.info().public_key
    with device("rotated", tmp_path / "awake", device_client) as edge:
        until(lambda: edge.version)
        shutil.copytree(tmp_path / "awake" / "model", tmp_path / "asleep" / "model")
        for seed in (1, 2):
            before = edge.version
            assert f": {device_client.info().public_key} gave way to " in rotate(server)
            teach(device_client, "rotated", seed=seed)
            until(lambda before=before: follows(edge) not in ("", before))
    assert Trust(tmp_path / "awake" / "model").key == device_client.info().public_key != first
    for folder, key in (("asleep", ""), ("asleep", first), ("new", first)):
        settings = replace(QUICK, server_key=key)
        other = device("rotated", tmp_path / folder, device_client, settings)
        other.pull()
        assert int(other.version.rpartition("/")[2]) >= int(edge.version.rpartition("/")[2])
        other.close()
        assert Trust(tmp_path / folder / "model").key == device_client.info().public_key
    info = device_client.info()
    rotations = [KeyRotation.of(each) for each in info.key_rotations]
    assert descendants(bytes.fromhex(first), rotations)[-1].hex() == info.public_key


def test_with_the_server_stopped_it_is_the_same_and_an_export_of_before_is_signed_anew(
    server: RealServer, client: Client, backbone: Path, tmp_path: Path
) -> None:
    declare(server, backbone, "stopped")
    before = client.export("stopped")
    key = client.info().public_key
    server.terminate()
    rotate(server)
    checked = CliRunner().invoke(app, ["check", "--data", str(server.folder)])
    assert checked.exit_code == 0, checked.output
    server.start()
    again = client.export("stopped", version=int(before.version.rpartition("/")[2]))
    assert (again.name, again.manifest) == (before.name, before.manifest)
    new = bytes.fromhex(client.info().public_key)
    assert is_signed(again.manifest, again.signature, new)
    assert not is_signed(again.manifest, before.signature, new)
    Trust(tmp_path, key=key).check(again, client)
    with pytest.raises(DataLoss, match="not signed by the server"):
        Trust(tmp_path, key=key).check(before, client)


def test_a_receipt_of_before_comes_with_the_key_that_signed_it(
    server: RealServer, client: Client, backbone: Path
) -> None:
    server.declare(tiny.declaration(backbone, name="receipted", privacy={"client_sums": True}))
    with server.client(client_id="leaver") as leaver:
        teach(leaver, "receipted", seed=0)
    report = client.erase("receipted", client_id="leaver")
    old = client.info().public_key
    rotate(server)
    (told,) = client.erasures("receipted")
    assert told.public_key.hex() == old != client.info().public_key
    assert is_signed(told.receipt.encode(), told.signature, told.public_key)
    assert json.loads(told.receipt) == json.loads(report.erasure.receipt)


def test_without_a_data_folder_nothing_is_made(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["rotate-signing-key", "--data", str(tmp_path)])
    assert done.exit_code == 2
    assert list(tmp_path.iterdir()) == []
