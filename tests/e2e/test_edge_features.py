"""Split learning: a device keeps and sends what the trunk made of a sample, and never the sample."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests import tiny
from tests.real_server import RealServer
from typer.testing import CliRunner

from everlearn_client import Client, FailedPrecondition, InvalidArgument
from everlearn_client.cli import exit_codes
from everlearn_client.cli.app import app
from everlearn_client.edge import EdgeModel, EdgeSettings, SendPolicy
from everlearn_client.edge.session import EdgeSession

LABELS = ("ash", "birch", "cedar")


@pytest.fixture
def device_client(server: RealServer) -> Iterator[Client]:
    with server.client(client_id="device-5") as connected:
        yield connected


def declare(server: RealServer, backbone: Path, name: str, **spec: object) -> None:
    server.declare(tiny.declaration(backbone, name=name, **spec))
    with server.client() as teacher:
        teacher.learn(name, [(tiny.images(20, index), [label] * 20) for index, label in enumerate(LABELS)])


def device(name: str, folder: Path, client: Client, send: str) -> EdgeModel:
    policy = SendPolicy(duplicate_bits=None, send=send)  # type: ignore[arg-type]  # one of two words
    return EdgeModel(name, folder=folder, client=client, settings=EdgeSettings(policy=policy))


def on_disk(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted((folder / "spool").rglob("*")) if path.is_file())


def test_a_device_computes_the_features_that_the_server_would_and_teaches_by_them(
    server: RealServer, device_client: Client, backbone: Path, tmp_path: Path
) -> None:
    declare(server, backbone, "split")
    before = device_client.models.get("split").status.sample_count
    images = tiny.images(12, 8, seed=4)
    with device("split", tmp_path, device_client, "features") as edge:
        edge.pull()
        for image in images:
            assert edge.observe(image, "dogwood") == "send"
        edge.flush()
        assert edge.spool.counts["durable"] == (12, 12)
        assert edge.spool.dead_letters == 0
    assert device_client.models.get("split").status.sample_count == before + 12
    taught = device_client.predict("split", tiny.images(5, 8, seed=9), version="latest")
    assert [best[0].label for best in taught.top] == ["dogwood"] * 5

    (path,) = (tmp_path / "model").rglob("model.onnx")
    session = EdgeSession(path, with_features=True)
    ((digest, there_Nd),) = device_client.embed(["split"], images).features_Nd.items()
    assert session.feature_digest == digest
    np.testing.assert_allclose(session.features(images), there_Nd, rtol=1e-4, atol=1e-5)
    plain = EdgeSession(path)
    np.testing.assert_array_equal(session.scores(images), plain.scores(images))
    with pytest.raises(FailedPrecondition, match="without its features"):
        plain.features(images)


def test_features_are_the_trunks_also_where_a_projection_lies_above_them(
    server: RealServer, device_client: Client, backbone: Path, tmp_path: Path
) -> None:
    declare(server, backbone, "projected", projection={"dim": 64, "seed": 3})
    edge = device("projected", tmp_path, device_client, "features")
    edge.pull()
    image = tiny.images(1, 1, seed=4)
    edge.observe(image[0], "birch")
    edge.flush()
    assert edge.spool.counts["durable"] == (1, 1)
    edge.close()


@pytest.mark.parametrize(("send", "lies_there"), [("features", False), ("sample", True)])
def test_of_a_sample_nothing_lies_on_the_disk_where_features_are_sent(
    server: RealServer, device_client: Client, backbone: Path, tmp_path: Path, send: str, lies_there: bool
) -> None:
    name = f"disk-{send}"
    declare(server, backbone, name)
    edge = device(name, tmp_path, device_client, send)
    edge.pull()
    image = tiny.images(1, 1, seed=6)[0]
    edge.observe(image, "birch")
    assert (image.tobytes()[:64] in on_disk(tmp_path)) is lies_there
    assert edge.spool.samples == 1
    edge.close()


def test_what_cannot_be_sent_as_features_is_refused_before_anything_is_counted(
    server: RealServer, device_client: Client, backbone: Path, tmp_path: Path
) -> None:
    declare(server, backbone, "refusing")
    edge = device("refusing", tmp_path, device_client, "features")
    image = tiny.images(1, 1)[0]
    with pytest.raises(FailedPrecondition, match="no model on this device"):
        edge.observe(image, "birch")
    edge.pull()
    with pytest.raises(InvalidArgument, match="the policy sends features"):
        edge.observe(image, "birch", send=[b"jpeg"])
    assert set(edge.decisions.values()) == {0}
    edge.close()
    with pytest.raises(InvalidArgument, match="features computed in fp16"):
        EdgeSettings(policy=SendPolicy(send="features"), precision="fp16")
    with pytest.raises(InvalidArgument, match=r"SendPolicy\.send"):
        SendPolicy(send="thoughts")  # type: ignore[arg-type]


def test_the_command_sends_features_of_a_cameras_files(
    server: RealServer, device_client: Client, backbone: Path, tmp_path: Path
) -> None:
    declare(server, backbone, "command")
    before = device_client.models.get("command").status.sample_count
    (tmp_path / "camera").mkdir()
    Image.fromarray(tiny.images(1, 1, seed=6)[0]).save(tmp_path / "camera" / "a.png")
    line = f"edge run command --source {tmp_path / 'camera'} --folder {tmp_path / 'device'} -s {server.address}"
    done = CliRunner().invoke(app, f"{line} --once --settle 0 --label birch --send features --after delete")
    assert done.exit_code == exit_codes.OK, done.output
    assert json.loads(done.stdout)["decision"] == "send"
    assert device_client.models.get("command").status.sample_count == before + 1
