"""`Embed`: features of one batch for several models, each backbone run once, on a real server."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
from tests import tiny
from tests.e2e.server_calls import encoded
from tests.real_server import RealServer

from everlearn_client import AsyncClient, Client, Features, InvalidArgument, NotFound

IMAGES = np.concatenate([tiny.images(4, label) for label in range(3)])
LABELS = [f"c{label}" for label in range(3) for _ in range(4)]


def digest_of(client: Client, name: str) -> str:
    return client.models.get(name).status.input.feature_digest


def test_models_on_one_backbone_get_the_same_features_from_one_pass_and_those_are_the_trunk_s_own(
    server: RealServer, client: Client, backbone: Path, tmp_path: Path
) -> None:
    server.declare(tiny.declaration(backbone, "first"))
    server.declare(tiny.declaration(backbone, "second", head={"kind": "lda"}))
    server.declare(tiny.declaration(tiny.write_backbone(tmp_path, 24), "other"))
    found = client.embed(["first", "second", "models/other"], IMAGES)
    assert found.passes == 2
    assert found.trunk_ms > 0
    assert list(found.features_Nd) == [digest_of(client, "first"), digest_of(client, "other")]
    assert [features.shape for features in found.features_Nd.values()] == [(12, 16), (12, 24)]
    # The control: what is taught as features is, bit for bit, what images are taught as.
    client.learn("first", [(IMAGES, LABELS)])
    client.learn(
        "second",
        [(Features(found.features_Nd[digest_of(client, "second")]), LABELS)],
        feature_digest=digest_of(client, "second"),
    )
    digests = [client.models.get(name).status.memory_digest for name in ("first", "second")]
    assert digests[0] == digests[1]
    assert digests[0] != client.models.get("other").status.memory_digest


def test_fronts_that_differ_are_passes_of_their_own(server: RealServer, client: Client, backbone: Path) -> None:
    server.declare(tiny.declaration(backbone, "grey"))
    shifted = {"size": 16, "resize": "squash", "interpolation": "bilinear", "mean": [0.2] * 3, "std": [0.5] * 3}
    server.declare(tiny.declaration(backbone, "shifted", input=shifted))
    found = client.embed(["grey", "shifted"], [encoded(IMAGES[0])])
    assert found.passes == 2
    one, two = found.features_Nd.values()
    assert not np.array_equal(one, two)


def test_random_features_are_made_of_the_plain_backbone_s_pass_and_mean_the_same(
    server: RealServer, client: Client, backbone: Path
) -> None:
    names = ["plain", *(f"random-{dim}" for dim in (32, 64))]
    server.declare(tiny.declaration(backbone, "plain"))
    for dim in (32, 64):
        server.declare(tiny.declaration(backbone, f"random-{dim}", projection={"dim": dim, "seed": 5}))
    shared = client.embed(names, IMAGES)
    alone = client.embed(["random-64"], IMAGES)
    assert (shared.passes, alone.passes) == (1, 1)
    digest = digest_of(client, "random-64")
    assert shared.features_Nd[digest].shape == (12, 64)
    np.testing.assert_allclose(shared.features_Nd[digest], alone.features_Nd[digest], rtol=1e-4, atol=1e-6)
    client.learn("random-64", [(Features(shared.features_Nd[digest]), LABELS)], feature_digest=digest)
    assert [top[0].label for top in client.predict("random-64", IMAGES).top] == LABELS


def test_nothing_is_learned_and_the_asynchronous_client_gets_the_same(server: RealServer, backbone: Path) -> None:
    server.declare(tiny.declaration(backbone, "untouched"))

    async def asked() -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        async with AsyncClient(server.address) as connected:
            (features,) = (await connected.embed(["untouched"], IMAGES)).features_Nd.values()
            return np.asarray(features)

    with server.client() as client:
        (features,) = client.embed(["untouched"], IMAGES).features_Nd.values()
        np.testing.assert_array_equal(asyncio.run(asked()), features)
        assert client.models.get("untouched").status.sample_count == 0


def test_what_cannot_be_embedded_is_refused_with_its_field(server: RealServer, client: Client, backbone: Path) -> None:
    server.declare(tiny.declaration(backbone, "here"))
    server.declare(tiny.declaration(backbone, "wide", projection={"dim": 16_384}))
    with pytest.raises(NotFound) as missing:
        client.embed(["here", "nobody"], IMAGES)
    assert missing.value.field == "names[1]"
    for names, samples, field, words in (
        ([], IMAGES, "names", "name 1 to 256"),
        (["here"], Features(np.zeros((2, 16), np.float32)), "samples.features", "send the samples themselves"),
        (["here"], [b"not an image"], "samples.encoded_images.images[0]", ""),
        (["here", "wide"], np.concatenate([IMAGES] * 6), "samples", "send 62 samples a request at most"),
        (["here"], np.zeros((1025, 1, 1, 3), np.uint8), "samples", "1024"),
    ):
        with pytest.raises(InvalidArgument) as refused:
            client.embed(names, samples)
        assert refused.value.field == field
        assert words in refused.value.message
