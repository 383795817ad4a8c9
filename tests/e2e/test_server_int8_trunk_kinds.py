"""A trunk in 8 bits under every kind of model that it composes with, many clients, and what happens meanwhile."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from tests import tiny
from tests.real_server import RealServer

from everlearn_client import Client, NotFound
from everlearn_client.edge import EdgeModel, EdgeSettings, SendPolicy
from everlearn_client.errors import Held

LABELS = ("ash", "birch", "cedar")
DECLARED = {"samples": 48}
KINDS: dict[str, dict[str, object]] = {
    "solved": {"unknown": {"kind": "abstain"}, "late_labels": {"capacity": 100, "ttl_s": 60}},
    "bounded": {"limits": {"norm": 1, "client_share": 0.9, "client_labels": 3}},
    "by-class": {"memory": {"kind": "per_class_statistics"}, "head": {"kind": "lda"}},
    "steps": {"recipe": "latent_replay"},
    "wide": {"memory": {"bits": 16}},
    "narrow": {"memory": {"bits": 8}},
}


@pytest.mark.parametrize("kind", KINDS)
def test_whatever_learns_above_it_learns_all_once(
    server: RealServer, backbone: Path, kind: str, tmp_path: Path
) -> None:
    server.declare(tiny.declaration(backbone, name=kind, labels=list(LABELS), int8_trunk=DECLARED, **KINDS[kind]))
    with server.client(client_id="teacher") as client:
        for seed in (0, 5):
            client.learn(kind, [(tiny.images(30, at, seed=seed), [label] * 30) for at, label in enumerate(LABELS)])
        status = client.models.get(kind).status
        assert (status.sample_count, status.int8.calibrated_on) == (180, 60)
        images = np.concatenate([tiny.images(5, at, seed=9) for at in range(3)])
        found = [top[0].label for top in client.predict(kind, images, version="latest").top if top]
        assert np.mean([a == b for a, b in zip(found, np.repeat(LABELS, 5), strict=True)]) > 0.8
        paths = client.download(client.export(kind, "latest"), tmp_path)
        assert json.loads(next(path for path in paths if path.name == "export.json").read_text())["precision"] == "int8"


@pytest.mark.parametrize(
    ("task", "truths"), [("multilabel", [["a"], ["a", "b"], []]), ("regression", [[1.0], [5.0], [9.0]])]
)
def test_so_does_another_task(server: RealServer, backbone: Path, task: str, truths: list[list[object]]) -> None:
    outputs = {"outputs": [{"name": "size", "min": 0, "max": 10}]} if task == "regression" else {}
    server.declare(tiny.declaration(backbone, name=task, task=task, int8_trunk=DECLARED, **outputs))
    with server.client(client_id="teacher") as client:
        client.learn(task, [(tiny.images(30, at), [truth] * 30) for at, truth in enumerate(truths)])
        assert client.models.get(task).status.sample_count == 90
        assert client.export(task).precision == "int8"


def test_clients_that_come_together_have_all_of_theirs_learned_once(server: RealServer, backbone: Path) -> None:
    server.declare(tiny.declaration(backbone, name="crowd", int8_trunk=DECLARED))

    def teach(number: int) -> int:
        with server.client(client_id=f"client-{number}") as client:
            batches = [
                (tiny.images(4, turn % 3, seed=100 * number + turn), [LABELS[turn % 3]] * 4) for turn in range(12)
            ]
            return client.learn("crowd", batches).durable_sequence

    with ThreadPoolExecutor(5) as pool:
        assert list(pool.map(teach, range(5))) == [12] * 5
    with server.client() as client:
        status = client.models.get("crowd").status
        assert (status.sample_count, status.int8.calibrated_on) == (5 * 48, 48)


def test_a_device_keeps_what_waits_until_others_have_sent_the_rest(
    server: RealServer, backbone: Path, tmp_path: Path
) -> None:
    server.declare(tiny.declaration(backbone, name="waits", int8_trunk=DECLARED))
    settings = EdgeSettings(policy=SendPolicy(duplicate_bits=None))
    with server.client(client_id="device-3") as line, server.client(client_id="other") as other:
        edge = EdgeModel("waits", folder=tmp_path, client=line, settings=settings)
        for image in tiny.images(10, 1):
            assert edge.observe(image, "birch") == "send"
        with pytest.raises(Held, match="10 of 48"):
            edge.flush()
        assert edge.spool.samples == 10
        with pytest.raises(Held, match="10 of 48"):  # the same ten
            edge.flush()
        other.learn("waits", [(tiny.images(20, at), [label] * 20) for at, label in enumerate(LABELS)])
        edge.flush()
        assert edge.spool.counts["durable"] == (10, 10)
        edge.close()
        assert other.models.get("waits").status.sample_count == 70


def test_a_restart_and_an_end_in_the_middle_leave_nothing_behind(server: RealServer, backbone: Path) -> None:
    text = tiny.declaration(backbone, name="fleeting", int8_trunk=DECLARED)
    server.declare(text)
    with server.client(client_id="early") as client, pytest.raises(Held):
        client.learn("fleeting", [(tiny.images(20, 0), ["ash"] * 20)])
    server.restart()
    with server.client(client_id="early") as client:
        assert client.models.get("fleeting").status.held.startswith("0 of 48")
        with pytest.raises(Held):
            client.learn("fleeting", [(tiny.images(20, 0), ["ash"] * 20)])
        # A declaration that changes something else lets those that came count on.
        client.models.apply(tiny.declaration(backbone, name="fleeting", int8_trunk=DECLARED, labels=["ash", "birch"]))
        assert client.models.get("fleeting").status.held.startswith("20 of 48")
        assert list(client.models.get("fleeting").status.labels) == ["ash", "birch"]
        # Nor do limits refuse what is only counted.
        limits = {"limits": {"client_labels": 0}, "labels": ["ash", "birch"]}
        client.models.apply(tiny.declaration(backbone, name="fleeting", int8_trunk=DECLARED, **limits))
        with pytest.raises(Held, match="40 of 48"):
            client.learn("fleeting", [(tiny.images(20, 2), ["cedar"] * 20)])
        client.models.delete("fleeting")
        with pytest.raises(NotFound):
            client.models.get("fleeting")


def test_a_model_that_was_in_fp32_answers_by_it_until_it_has_learned_in_8_bits(
    server: RealServer, client: Client, backbone: Path
) -> None:
    server.declare(tiny.declaration(backbone, name="moves"))
    batches = [(tiny.images(30, at), [label] * 30) for at, label in enumerate(LABELS)]
    with server.client(client_id="teacher") as teacher:
        teacher.learn("moves", batches)
        before = teacher.models.get("moves").status
        text = tiny.declaration(backbone, name="moves", int8_trunk=DECLARED)
        teacher.models.apply(text, allow_replace=True)
        image = tiny.images(1, 1, seed=3)
        assert teacher.predict("moves", image).top[0][0].label == "birch"
        assert client.export("moves").precision == "fp32"
        teacher.learn("moves", [(tiny.images(30, at, seed=4), [label] * 30) for at, label in enumerate(LABELS)])
        after = teacher.models.get("moves").status
        assert after.trunk_digest != before.trunk_digest
        assert teacher.predict("moves", image).top[0][0].label == "birch"
        assert client.export("moves").precision == "int8"
