"""Several labels, and values, learned by gradient steps through the real server: scores, records, export, crashes."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from sklearn.metrics import f1_score, r2_score
from tests.e2e.test_server_tasks import (
    DIGITS,
    PATIENTS,
    exported,
    learn_digits,
    learn_patients,
    probabilities,
    status_of,
    values,
)
from tests.real_server import RealServer

from everlearn_client import Client, Tensors


def kill_trainers(server: RealServer) -> int:
    children = psutil.Process(server.pid).children()
    trainers = [child for child in children if "everlearn.learners.gradient.child" in child.cmdline()]
    for trainer in trainers:
        os.kill(trainer.pid, signal.SIGKILL)
    return len(trainers)


def test_sets_are_learned_by_steps_through_a_killed_trainer_and_leave_as_they_are_served(
    server: RealServer, client: Client, tmp_path: Path
) -> None:
    for name in ("killed", "calm"):
        server.declare(DIGITS.declaration(name, recipe="latent_replay"))
    learn_digits(client, "killed", slice(0, 640))
    assert kill_trainers(server) == 2
    learn_digits(client, "killed", slice(640, 1200))
    learn_digits(client, "calm", slice(0, 640))
    learn_digits(client, "calm", slice(640, 1200))
    killed, calm = status_of(client, "killed"), status_of(client, "calm")
    assert killed.memory_digest == calm.memory_digest
    assert killed.sample_count == 1200
    assert list(killed.samples_per_class) == [
        int(DIGITS.has[:1200, ("even", "large", "prime", "round", "one").index(label)].sum()) for label in killed.labels
    ]
    total = killed.report.total
    assert killed.prequential.tested > 0
    assert 0.5 < total.micro_f1 < 1
    found = probabilities(client, "killed", slice(1200, 1797))
    assert ((found > 0) & (found < 1)).all()
    assert f1_score(DIGITS.has[1200:], found >= 0.5, average="micro") > 0.85
    session = exported(client, "killed", tmp_path)
    scores, present, labels = session.run(["scores", "present", "labels"], {"tensor": DIGITS.values[1200:]})
    columns = [labels.tolist().index(label) for label in ("even", "large", "prime", "round", "one")]
    np.testing.assert_allclose(scores[:, columns], found, atol=1e-4)
    assert (present[:, columns] == (found >= 0.5)).mean() > 0.999


def test_values_are_learned_by_steps_and_a_killed_server_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    steps: dict[str, Any] = {"head": {"kind": "linear"}, "memory": {"kind": "latents"}}
    with RealServer(tmp_path / "data") as server:
        server.declare(PATIENTS.declaration("killed", **steps, retention={"features": "latents"}))
        with server.client() as client:
            learn_patients(client, "killed", slice(0, 160))
            before = values(client, "killed", slice(300, 442))
        server.kill()
        server.start()
        server.declare(PATIENTS.declaration("calm", **steps, retention={"features": "latents"}))
        with server.client() as client:
            assert np.array_equal(values(client, "killed", slice(300, 442)), before)
            learn_patients(client, "killed", slice(160, 300))
            learn_patients(client, "calm", slice(0, 160))
            learn_patients(client, "calm", slice(160, 300))
            killed, calm = status_of(client, "killed"), status_of(client, "calm")
            assert killed.memory_digest == calm.memory_digest
            assert killed.sample_count == 300
            assert list(killed.samples_per_class) == [300, 300]
            assert [each.name for each in killed.report.total.outputs] == ["progression", "pressure"]
            assert killed.prequential.tested > 0
            found = values(client, "killed", slice(300, 442))
            assert r2_score(PATIENTS.truth[300:], found) > 0.3
            session = exported(client, "killed", tmp_path)
            (told,) = session.run(["values"], {"tensor": PATIENTS.values[300:]})
            np.testing.assert_allclose(told, found, rtol=1e-4)
            rejected = client.learn("killed", [(Tensors(PATIENTS.values[:1]), np.array([[401.0, 100.0]], np.float32))])
            assert rejected.rejected[0].field == "batch.values[0][0]"
