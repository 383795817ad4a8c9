"""F9: NaN and infinity among the features of one client, good ones of others at once; each is refused, none costs."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from tests.faults.learners import MODEL
from tests.faults.scene import Scene, stream

from everlearn.sums import Sums
from everlearn_client.samples import Batch, Features

SHORT: Mapping[str, int] = {"spoilt": 10, "batches": 60}
LONG: Mapping[str, int] = {"spoilt": 100, "batches": 2_000}
VALUES = (np.nan, np.inf, -np.inf)


def run(folder: Path, *, spoilt: int, batches: int, fault: str = "") -> Mapping[str, object]:
    """So many of so many batches are spoilt; two others stream beside them. `fault`: of a control."""
    scene, chance = Scene(folder, clients=2, batches=batches), random.Random(9)
    made, features = stream(9, batches, scene.trunk)
    wrong = sorted(chance.sample(range(batches), spoilt))
    for turn, index in enumerate(wrong):
        rows_Bd = features[index].copy()
        rows_Bd[chance.randrange(len(rows_Bd)), chance.randrange(rows_Bd.shape[1])] = VALUES[turn % len(VALUES)]
        made[index] = Batch(Features(rows_Bd), made[index].labels)
    scene.server.fault = fault
    scene.server.start()
    scene.go()
    with scene.server.client(client_id="spoilt") as client:
        report = client.learn(MODEL, made, feature_digest=scene.trunk.feature_digest)
    scene.crowd.join(240)
    refused = [(each.sequence, each.code) for each in report.rejected]
    assert refused == [(index + 1, "INVALID_ARGUMENT") for index in wrong][-len(refused) :], refused
    assert report.rejected_batches == spoilt
    expected = Sums(scene.trunk.feature_dim)
    good = [(each, rows) for index, (each, rows) in enumerate(zip(made, features, strict=True)) if index not in wrong]
    for learner in scene.learners:
        good += zip(learner.batches, learner.features, strict=True)
    for batch, rows_Bd in good:
        expected.add(scene.trunk.scale.quantise(rows_Bd), list(batch.labels))
    with scene.server.client() as client:
        assert client.models.get(MODEL).status.memory_digest == expected.digest()
    assert scene.server.terminate() == 0
    assert "Traceback" not in scene.server.log
    return {"refused": report.rejected_batches, "samples learned": expected.samples}
