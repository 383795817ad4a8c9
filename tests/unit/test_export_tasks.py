"""Exports of several labels and of values: what the file gives is what the server says, and the card's example runs."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import yaml
from PIL import Image
from tests.unit.export_trunks import Server, conv_trunk, random_head
from tests.unit.test_export_card import REPORT, _facts

from everlearn.backbones.identity import IdentityLoader
from everlearn.errors import ParityError
from everlearn.export.card import model_card
from everlearn.export.compose import Composer
from everlearn.export.parity import check_export, head_parity
from everlearn.spec.model import Backbone
from everlearn.values import BackboneFiles, LinearHead, Task, TensorFront

METADATA = {"model": "flowers", "version": "7"}
TASKS: tuple[Task, ...] = ("multilabel", "regression")


def head_of(task: Task, classes: int = 5) -> LinearHead:
    return dataclasses.replace(random_head(classes), task=task)


def images() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (rows, columns, 3), np.uint8) for rows, columns in ((32, 32), (32, 32))]


@pytest.mark.parametrize("task", TASKS)
def test_a_file_says_what_the_server_says(task: Task) -> None:
    trunk, head = conv_trunk(), head_of(task)
    file = Composer(trunk).compose(head, METADATA)
    report = check_export(file, images(), Server(trunk, head), tolerance=0.01, labels=head.labels, task=task)
    assert report.label_agreement == 1
    assert head_parity(head, np.abs(np.random.default_rng(0).normal(size=(8, 16))).astype(np.float32)) < 1e-5


def test_outputs_of_several_labels_are_probabilities_presence_and_the_table() -> None:
    trunk, head = conv_trunk(), head_of("multilabel")
    session = onnxruntime.InferenceSession(Composer(trunk).compose(head, METADATA))
    names = [output.name for output in session.get_outputs()]
    given = dict(zip(names, session.run(None, {"image": images()[0][None]}), strict=True))
    assert set(given) == {"scores", "present", "labels"}
    assert ((given["scores"] > 0) & (given["scores"] < 1)).all()
    assert given["present"].dtype == np.bool_
    assert given["present"].tolist() == (given["scores"] >= 0.5).tolist()
    assert given["labels"].tolist() == list(head.labels)


def test_the_output_of_a_regression_is_values_whose_names_are_in_the_metadata() -> None:
    trunk, head = conv_trunk(), head_of("regression", 2)
    file = Composer(trunk).compose(head, METADATA)
    session = onnxruntime.InferenceSession(file)
    assert [output.name for output in session.get_outputs()] == ["values"]
    told = {entry.key: entry.value for entry in onnx.load_model_from_string(file).metadata_props}
    assert json.loads(told["everlearn.outputs"]) == list(head.labels)
    assert told["everlearn.task"] == "regression"
    assert "everlearn.labels" not in told


@pytest.mark.parametrize("task", TASKS)
def test_another_head_is_not_released(task: Task) -> None:
    trunk, head = conv_trunk(), head_of(task)
    other = dataclasses.replace(head, bias_C=head.bias_C + np.float32(0.3))
    with pytest.raises(ParityError, match="differ by"):
        check_export(
            Composer(trunk).compose(other, METADATA),
            images(),
            Server(trunk, head),
            tolerance=0.02,
            labels=head.labels,
            task=task,
        )


def test_values_are_compared_in_each_outputs_own_unit() -> None:
    head = head_of("regression", 2)
    units = np.array([1e6, 1e-6], np.float32)
    head = dataclasses.replace(head, weight_dC=head.weight_dC * units, bias_C=head.bias_C * units)
    wrong = dataclasses.replace(head, bias_C=head.bias_C + np.array([0, 1e-6], np.float32))
    trunk = conv_trunk()
    with pytest.raises(ParityError, match="differ by"):
        check_export(
            Composer(trunk).compose(wrong, METADATA),
            images(),
            Server(trunk, head),
            tolerance=0.01,
            labels=head.labels,
            task="regression",
        )


@pytest.mark.parametrize("task", TASKS)
def test_the_cards_example_of_an_image_runs(task: Task, tmp_path: Path) -> None:
    trunk, head = conv_trunk(), head_of(task)
    (tmp_path / "model.onnx").write_bytes(Composer(trunk).compose(head, METADATA))
    Image.fromarray(images()[0]).save(tmp_path / "image.jpg")
    card = model_card(_facts((3, 1, 4, 1, 5)), trunk, head, REPORT)
    code = card.split("```python\n")[1].split("```")[0]
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr
    assert "class 0" in result.stdout
    assert "highest wins" not in card


@pytest.mark.parametrize("task", TASKS)
def test_the_cards_example_of_a_tensor_runs_and_its_tag_is_the_hubs(task: Task, tmp_path: Path) -> None:
    front, files = (
        TensorFront(shape=(16,), low=(0.0,), high=(1.0,)),
        BackboneFiles(source="identity", revision="", paths={}, sha256={}),
    )
    trunk = IdentityLoader().build(Backbone(source="identity"), files, front, bits=12)
    head = head_of(task)
    (tmp_path / "model.onnx").write_bytes(Composer(trunk).compose(head, METADATA))
    card = model_card(_facts((3, 1, 4, 1, 5)), trunk, head, REPORT)
    code = card.split("```python\n")[1].split("```")[0]
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr
    tag = yaml.safe_load(card.split("---")[1])["pipeline_tag"]
    assert tag == ("tabular-regression" if task == "regression" else "tabular-classification")
