"""`ProbeModel`: how well a backbone fits and what it costs, on a real server."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
from tests import tiny
from tests.e2e.server_calls import encoded
from tests.real_server import RealServer

from everlearn.metrics.transferability import transferability
from everlearn.sums import Sums
from everlearn_client import AsyncClient, Client, FailedPrecondition, Features, InvalidArgument, NotFound


def test_a_probe_is_what_the_sums_say_and_what_the_trunk_costs(
    server: RealServer, client: Client, backbone: Path
) -> None:
    server.declare(tiny.declaration(backbone, "probed"))
    with pytest.raises(FailedPrecondition) as empty:
        client.models.probe("probed")
    assert empty.value.reason == "EMPTY_MEMORY"
    trunk = tiny.trunk_of(backbone)
    expected, digest = Sums(16), trunk.feature_digest
    for label in range(3):
        features = tiny.features(40, label, 16)
        client.learn("probed", [(Features(features), [f"c{label}"] * 40)], feature_digest=digest)
        expected.add(trunk.scale.quantise(features), [f"c{label}"] * 40)
        if label == 0:
            with pytest.raises(FailedPrecondition) as single:
                client.models.probe("probed")
            assert single.value.reason == "ONE_CLASS"
    before = client.models.get("probed")
    found = client.models.probe("models/probed")
    fit = transferability(expected, trunk.scale)
    assert (found.name, found.samples, found.classes, found.feature_dim) == ("models/probed", 120, 3, 16)
    figures = (found.log_me, found.h_score, found.h_shrinkage, found.gcv_residual)
    np.testing.assert_allclose(figures, (fit.log_me, fit.h_score, fit.h_shrinkage, fit.gcv_residual), rtol=1e-9)
    assert (found.trunk_bytes, found.head_bytes) == (len(trunk.onnx), 4 * 17 * 3)
    # Features came ready: no image has passed through the trunk, so there is no time to tell.
    assert not found.HasField("trunk_ms_per_image")
    assert client.models.get("probed").status.memory_digest == before.status.memory_digest


def test_the_time_of_an_image_is_told_once_images_have_passed(
    server: RealServer, client: Client, tmp_path: Path
) -> None:
    server.declare(tiny.declaration(tiny.write_backbone(tmp_path, 24), "timed"))
    batch = np.concatenate([tiny.images(10, label) for label in range(2)])
    client.learn("timed", [(batch, ["a"] * 10 + ["b"] * 10)])

    async def probed() -> tuple[float, int]:
        async with AsyncClient(server.address) as connected:
            found = await connected.models.probe("timed")
            return found.trunk_ms_per_image, found.timed_images

    milliseconds, images = asyncio.run(probed())
    assert 0 < milliseconds < 1000
    assert images == 20


def test_a_model_that_is_not_there_cannot_be_probed(client: Client) -> None:
    with pytest.raises(NotFound):
        client.models.probe("nobody")


def test_the_figures_of_images_are_those_of_the_files_as_they_were_sent(server: RealServer, backbone: Path) -> None:
    server.declare(tiny.declaration(backbone, "looked-at"))
    grey = np.zeros((8, 20, 3), np.uint8)
    grey[:, 10:] = 255
    red = np.zeros((4, 4, 3), np.uint8)
    red[..., 0] = 255
    with server.client() as client:
        before = client.models.get("looked-at").status.memory_digest
        found = client.models.probe_inputs("looked-at", [encoded(grey), encoded(red)])
        array = client.models.probe_inputs("looked-at", red)
        assert client.models.get("looked-at").status.memory_digest == before
        with pytest.raises(InvalidArgument, match="not an image file"):
            client.models.probe_inputs("looked-at", [encoded(red)[:40]])
        with pytest.raises(InvalidArgument, match="only images"):
            client.models.probe_inputs("looked-at", Features(np.zeros((1, 16), np.float32)))
        with pytest.raises(InvalidArgument, match="at most 256"):
            client.models.probe_inputs("looked-at", np.zeros((257, 2, 2, 3), np.uint8))
    first, second = found.images
    assert (first.height, first.width, first.mean, first.std, first.min, first.max) == (8, 20, 0.5, 0.5, 0, 1)
    assert first.colour == 0
    assert second.colour == 1
    assert array.images[0] == second
    assert (list(found.expected_mean), list(found.expected_std)) == ([0.5] * 3, [0.5] * 3)
    assert (found.height, found.width) == (16, 16)
