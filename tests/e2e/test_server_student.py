"""A student beside a model, through the real server: it learns, agrees, ships as one file, and survives restarts."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import psutil
import pytest
from tests import tiny
from tests.real_server import RealServer

from everlearn_client import Client
from everlearn_client.errors import EverlearnClientError, FailedPrecondition, InvalidArgument
from everlearn_protos.v1 import models_pb2

CLASSES = 3


@dataclass(frozen=True)
class House:
    """A server on which the networks are built once, and the files they come from."""

    server: RealServer
    large: Path
    small: Path

    def declare(self, name: str, **student: Any) -> str:
        """A model on the larger network with the smaller one as its student; its declaration."""
        backbone = {
            "source": f"folder:{self.small}",
            "sha256": hashlib.sha256(self.small.read_bytes()).hexdigest(),
            "architecture": "test_resnet",
        }
        text = tiny.declaration(
            self.large, name, distill_to={"backbone": backbone, "steps": 4, "window": 60, **student}
        )
        self.server.declare(text)
        return text


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    import safetensors.torch
    import timm
    import torch

    folder = tmp_path_factory.mktemp("house")
    torch.manual_seed(0)
    small = folder / "small.safetensors"
    safetensors.torch.save_file(timm.create_model("test_resnet").state_dict(), small)
    with RealServer(folder / "data") as server:
        yield House(server, tiny.write_backbone(folder, 32), small)


def batch(number: int) -> tuple[Any, list[str]]:
    images = np.concatenate([tiny.images(6, label, seed=number) for label in range(CLASSES)])
    return images, [f"c{label}" for label in range(CLASSES) for _ in range(6)]


def teach(client: Client, model: str, *numbers: int) -> models_pb2.StudentStatus:
    """Streams batches, each once the student has seen the one before: it would miss some of a hurried stream."""
    for number in numbers:
        before = client.models.get(model).status.student
        client.learn(model, [batch(number)])
        until_s = time.monotonic() + 240
        while figures(client.models.get(model).status.student) == figures(before):
            assert time.monotonic() < until_s, before
            time.sleep(0.05)
    return client.models.get(model).status.student


def figures(student: models_pb2.StudentStatus) -> tuple[int, ...]:
    return student.steps, student.missed, student.tested


def test_a_student_learns_beside_the_model_and_ships_as_one_small_file(house: House, tmp_path: Path) -> None:
    server = house.server
    with server.client(client_id="one") as client:
        house.declare("taught")
        first = teach(client, "taught", 0)
        assert (first.samples, first.missed, first.steps) == (18, 0, 4)
        with pytest.raises(FailedPrecondition, match="60 are needed"):
            client.export("taught", student=True)
        student = teach(client, "taught", *range(1, 16))
        assert student.window == 60
        assert student.agreement > 0.8, student
        assert student.accuracy > 0.8, student
        export = client.export("taught", student=True)
        assert client.export("taught", student=True) == export, "nothing has changed since"
        number = int(export.version.rpartition("/")[2])

        client.download(export, tmp_path)
        image = tiny.images(1, 1, seed=5)
        session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
        (scores_NC,) = session.run(["scores"], {"image": image})
        served_NC = client.predict("taught", image, version=number, scores=True).scores_NC
        assert np.abs(scores_NC - served_NC).max() < 0.05
        told = {each.key: each.value for each in onnx.load(tmp_path / "model.onnx").metadata_props}
        assert float(told["everlearn.teacher_agreement"]) == pytest.approx(student.agreement, abs=1e-3)
        assert "This file is a student" in (tmp_path / "MODEL_CARD.md").read_text()

        with pytest.raises(FailedPrecondition, match="a student of version"):
            client.models.promote("taught", number)
        assert number not in client.models.get("taught").status.aliases.values()
    server.kill()
    server.start()
    with server.client(client_id="two") as client:
        found = client.models.get("taught").status.student
        assert (found.steps, found.samples, found.window) == (student.steps, student.samples, 60)
        again_NC = client.predict("taught", image, version=number, scores=True).scores_NC
        assert np.array_equal(again_NC, served_NC)
        assert teach(client, "taught", 30).steps == student.steps + 4


def test_a_student_that_dies_costs_the_model_nothing_and_goes_on(house: House) -> None:
    with house.server.client(client_id="three") as client:
        before = children_of(house.server)
        house.declare("mortal")
        teach(client, "mortal", 0)
        (child,) = children_of(house.server) - before
        os.kill(child, signal.SIGKILL)
        after = teach(client, "mortal", 1)
        assert after.missed == 18
        assert "process ended" in after.problem
        assert client.models.get("mortal").status.sample_count == 36
        until_s = time.monotonic() + 240
        while teach(client, "mortal", 2).problem:
            assert time.monotonic() < until_s


def test_students_that_disagree_or_are_not_declared_do_not_ship(house: House) -> None:
    with house.server.client(client_id="four") as client:
        slow = {"optimizer": {"kind": "sgd", "learning_rate": 1e-9}, "window": 10, "min_agreement": 1.0}
        text = house.declare("slow", **slow)
        teach(client, "slow", 0, 1)
        with pytest.raises(FailedPrecondition, match=r"min_agreement is 1\.000"):
            client.export("slow", student=True)
        before = client.models.get("slow").status
        plain = json.loads(text)
        del plain["spec"]["distill_to"]
        house.server.declare(json.dumps(plain))
        after = client.models.get("slow").status
        assert not after.HasField("student")
        assert after.memory_digest == before.memory_digest, "the model keeps what it has learned"
        with pytest.raises(FailedPrecondition, match="declare distill_to"):
            client.export("slow", student=True)


def test_lock_pins_the_students_backbone_too(house: House) -> None:
    with house.server.client(client_id="five") as client:
        declared = json.loads(house.declare("locked"))
        backbones = {"spec.backbone": declared["spec"]["backbone"]}
        backbones["spec.distill_to.backbone"] = declared["spec"]["distill_to"]["backbone"]
        pins = {field: each.pop("sha256") for field, each in backbones.items()}
        with pytest.raises(InvalidArgument, match="run `everlearn lock`"):
            client.models.plan(json.dumps(declared))
        locked = client.models.lock(json.dumps(declared))
        spec = json.loads(locked.declaration)["spec"]
        assert spec["backbone"]["sha256"] == pins["spec.backbone"]
        assert spec["distill_to"]["backbone"]["sha256"] == pins["spec.distill_to.backbone"]
        assert set(pins.values()) < set(locked.lock.values())
        assert client.models.plan(locked.declaration).action == "none"
        for field, each in backbones.items():
            each["sha256"] = "0" * 64
            with pytest.raises(EverlearnClientError) as refused:
                client.models.lock(json.dumps(declared))
            assert refused.value.field == f"{field}.sha256"
            del each["sha256"]


def children_of(server: RealServer) -> set[int]:
    """Processes in which students learn."""
    module = "everlearn.learners.gradient.imitation_child"
    return {child.pid for child in psutil.Process(server.pid).children() if module in child.cmdline()}
