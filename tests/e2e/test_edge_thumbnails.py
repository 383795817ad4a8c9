"""A device that sends thumbnails: small ones, of which the model makes nearly what it makes of the whole picture."""

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

from everlearn_client import Client, FailedPrecondition, InvalidArgument, Tensors
from everlearn_client.cli import exit_codes
from everlearn_client.cli.app import app
from everlearn_client.edge import EdgeModel, EdgeSettings, SendPolicy

LABELS = ("ash", "birch", "cedar")
SIDE = 160
"""Of the camera's pictures; the model reads 16."""


@pytest.fixture
def device_client(server: RealServer) -> Iterator[Client]:
    with server.client(client_id="device-6") as connected:
        yield connected


def declare(server: RealServer, backbone: Path, name: str) -> None:
    server.declare(tiny.declaration(backbone, name=name))
    with server.client() as teacher:
        teacher.learn(name, [(tiny.images(20, index, side=SIDE), [label] * 20) for index, label in enumerate(LABELS)])


def device(name: str, folder: Path, client: Client, **policy: object) -> EdgeModel:
    settings = EdgeSettings(policy=SendPolicy(duplicate_bits=None, **policy))  # type: ignore[arg-type]  # its fields
    return EdgeModel(name, folder=folder, client=client, settings=settings)


def on_disk(folder: Path) -> int:
    return sum(path.stat().st_size for path in (folder / "spool").rglob("*") if path.is_file())


def test_what_was_taught_by_thumbnails_is_known_in_whole_pictures(
    server: RealServer, device_client: Client, backbone: Path, tmp_path: Path
) -> None:
    declare(server, backbone, "thumbnails")
    pictures = tiny.images(12, 8, seed=4, side=SIDE)
    sizes = {}
    for send, px in (("sample", None), ("thumbnail", None), ("thumbnail", 40)):
        folder = tmp_path / f"{send}-{px}"
        with device("thumbnails", folder, device_client, send=send, thumbnail_px=px) as edge:
            edge.pull()
            empty = on_disk(folder)
            for picture in pictures:
                assert edge.observe(picture, "dogwood" if send == "thumbnail" else "other") == "send"
            sizes[send, px] = on_disk(folder) - empty
            edge.flush()
            assert edge.spool.counts["durable"] == (12, 12)
            assert edge.spool.dead_letters == 0
    assert sizes["thumbnail", None] < sizes["thumbnail", 40] < sizes["sample", None] / 10
    taught = device_client.models.get("thumbnails").status
    samples = dict(zip(taught.labels, taught.samples_per_class, strict=True))
    assert (samples["dogwood"], samples["other"]) == (24, 12)
    best = device_client.predict("thumbnails", tiny.images(5, 8, seed=9, side=SIDE), top_k=2, version="latest").top
    assert all({each.label for each in top} == {"dogwood", "other"} for top in best)


def test_without_a_model_a_size_has_to_be_given_and_nothing_else_can_be_sent(
    device_client: Client, tmp_path: Path
) -> None:
    picture = tiny.images(1, 0, side=SIDE)[0]
    with device("none", tmp_path / "a", device_client, send="thumbnail") as edge:
        with pytest.raises(FailedPrecondition, match="no model on this device"):
            edge.observe(picture, "ash")
        with pytest.raises(InvalidArgument, match="sends thumbnails, so nothing else"):
            edge.observe(picture, "ash", send=[b"jpeg"])
        assert edge.decisions["send"] == 0
    with device("none", tmp_path / "b", device_client, send="thumbnail", thumbnail_px=24) as edge:
        assert edge.observe(picture, "ash") == "send"
        with pytest.raises(InvalidArgument, match=r"uint8 \[H, W, 3\], not of float32"):
            edge.observe(np.zeros(4, np.float32), "ash")
        assert edge.spool.waiting == 1


def test_a_model_of_plain_numbers_has_no_thumbnails(server: RealServer, device_client: Client, tmp_path: Path) -> None:
    read = {"modality": "tensor", "shape": [4], "range": [[-4, 4]]}
    body = {"metadata": {"name": "numbers"}, "spec": {"backbone": {"source": "identity"}, "input": read}}
    server.declare(json.dumps(body))
    values = np.random.default_rng(0).normal(0, 1, (40, 4)).astype(np.float32)
    device_client.learn("numbers", [(Tensors(values), ["a", "b"] * 20)])
    with device("numbers", tmp_path, device_client, send="thumbnail") as edge:
        edge.pull()
        with pytest.raises(InvalidArgument, match="takes no images"):
            edge.observe(tiny.images(1, 0)[0], "a")


def test_edge_run_sends_thumbnails_of_files(server: RealServer, backbone: Path, tmp_path: Path) -> None:
    declare(server, backbone, "files")
    camera = tmp_path / "camera"
    (camera / "elm").mkdir(parents=True)
    for number, picture in enumerate(tiny.images(4, 7, side=SIDE)):
        Image.fromarray(picture).save(camera / "elm" / f"{number}.png")
    line = ["edge", "run", "files", "--folder", str(tmp_path / "device"), "--source", str(camera), "--once"]
    line += ["--labels", "folder", "--settle", "0", "--duplicates", "--send", "thumbnail", "--server", server.address]
    done = CliRunner().invoke(app, [*line, "--thumbnail-px", "32"])
    assert done.exit_code == exit_codes.OK, done.output
    assert [json.loads(each)["decision"] for each in done.stdout.splitlines()] == ["send"] * 4
    with server.client() as client:
        status = client.models.get("files").status
    assert dict(zip(status.labels, status.samples_per_class, strict=True))["elm"] == 4
