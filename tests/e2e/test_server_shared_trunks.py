"""Models on one backbone file share its session; what is their own (front, scale, limits) stays their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tests import tiny
from tests.real_server import RealServer

from everlearn_client import Client

PROBE = tiny.images(3, 1, seed=5)


def declared(backbone: Path, name: str, mean: float = 0.5, **spec: Any) -> str:
    half = [0.5, 0.5, 0.5]
    declared_input = {"size": 16, "resize": "squash", "interpolation": "bilinear", "mean": [mean] * 3, "std": half}
    return tiny.declaration(backbone, name=name, input=declared_input, **spec)


def teach(client: Client, model: str) -> None:
    for label in range(3):
        client.learn(model, [(tiny.images(6, label), [f"c{label}"] * 6)])


def scores(client: Client, model: str) -> npt.NDArray[np.float32]:
    found = client.predict(model, PROBE, scores=True).scores_NC
    assert found is not None
    return found


def test_two_models_share_one_session_and_each_keeps_its_own_front_over_a_restart(
    server: RealServer, client: Client, backbone: Path
) -> None:
    for name, mean in (("plain", 0.5), ("shifted", 0.2)):
        server.declare(declared(backbone, name, mean))
        teach(client, name)
    before = {name: scores(client, name) for name in ("plain", "shifted")}
    statuses = [client.models.get(name).status for name in before]
    assert len({status.trunk_digest for status in statuses}) == 1
    assert len({status.input.feature_digest for status in statuses}) == 2
    assert dict(client.info().trunks) == {statuses[0].trunk_digest: 2}
    assert not np.array_equal(before["plain"], before["shifted"])

    server.restart()
    assert dict(client.info().trunks) == {statuses[0].trunk_digest: 2}
    for name, status in zip(before, statuses, strict=True):
        assert client.models.get(name).status.input.feature_digest == status.input.feature_digest
        np.testing.assert_array_equal(scores(client, name), before[name])


def test_a_version_of_an_earlier_lineage_serves_on_with_the_front_it_was_learned_with(
    server: RealServer, client: Client, backbone: Path
) -> None:
    server.declare(declared(backbone, "moved", 0.5))
    teach(client, "moved")
    before = scores(client, "moved")
    client.models.apply(declared(backbone, "moved", 0.1, gate={"min_samples": 1000}), allow_replace=True)
    np.testing.assert_array_equal(scores(client, "moved"), before)
    teach(client, "moved")
    server.restart()
    np.testing.assert_array_equal(scores(client, "moved"), before)
    latest = client.predict("moved", PROBE, version="latest", scores=True).scores_NC
    assert latest is not None
    assert not np.array_equal(latest, before)


def test_the_last_model_on_a_trunk_closes_its_session(server: RealServer, client: Client, tmp_path: Path) -> None:
    backbone = tiny.write_backbone(tmp_path, dim=20)
    digests = [server.declare(declared(backbone, name)).status.trunk_digest for name in ("first", "second")]
    assert client.info().trunks[digests[0]] == 2
    client.models.delete("first")
    assert client.info().trunks[digests[0]] == 1
    client.models.delete("second")
    assert digests[0] not in client.info().trunks
