"""`ProbeModel`: how well a backbone fits and what it costs, on a real server."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
from tests import tiny
from tests.real_server import RealServer

from everlearn.metrics.transferability import transferability
from everlearn.sums import Sums
from everlearn_client import AsyncClient, Client, FailedPrecondition, Features, NotFound


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
