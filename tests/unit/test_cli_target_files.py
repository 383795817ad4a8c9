"""Files of several labels or values a sample, for images and texts; those of tensors are learned in tests/e2e."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from everlearn_client import InvalidArgument, Texts
from everlearn_client.cli.target_files import open_targets
from everlearn_protos.v1 import models_pb2

SETS = models_pb2.InputContract(task="multilabel", modality="image")
VALUES = models_pb2.InputContract(
    task="regression",
    modality="image",
    outputs=[models_pb2.Output(name="kg", max=9), models_pb2.Output(name="cm", max=9)],
)
TEXTS = models_pb2.InputContract(task="multilabel", modality="text")
TENSORS = models_pb2.InputContract(task="multilabel", modality="tensor", shape=[2])


def written(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text)
    return folder / name


def test_a_table_of_paths_has_labels_in_as_many_columns_as_there_are(tmp_path: Path) -> None:
    path = written(tmp_path, "a.csv", "label_1,path,Tag 2\nred,a.png,round\n,b.png,\n\n,c.png,flat\n")
    found = open_targets(path, SETS)
    assert found.labels == [["red", "round"], [], ["flat"]]
    assert found.take(np.array([2, 0])) == [tmp_path / "c.png", tmp_path / "a.png"]


def test_values_are_found_by_the_outputs_names_in_their_declared_order(tmp_path: Path) -> None:
    path = written(tmp_path, "a.csv", "cm,file,kg\n1.5,a.png,2\n")
    assert open_targets(path, VALUES).labels == [[2.0, 1.5]]
    lines = written(tmp_path, "a.jsonl", json.dumps({"path": "a.png", "values": {"cm": 1.5, "kg": 2}}) + "\n\n")
    assert open_targets(lines, VALUES).labels == [[2.0, 1.5]]


def test_texts_have_labels_too(tmp_path: Path) -> None:
    path = written(
        tmp_path, "a.jsonl", '{"text": "it rains", "labels": ["wet", "cold"]}\n{"text": "sun", "labels": []}'
    )
    found = open_targets(path, TEXTS)
    assert found.labels == [["wet", "cold"], []]
    taken = found.take(np.array([1]))
    assert isinstance(taken, Texts)
    assert list(taken.texts) == ["sun"]


def test_an_archive_has_zeros_and_ones_beside_names(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.ones((2, 2)), y=np.array([[1, 0], [1, 1]]), names=np.array(["a", "b"]))
    assert open_targets(tmp_path / "a.npz", TENSORS).labels == [["a"], ["a", "b"]]
    np.savez(tmp_path / "b.npz", features=np.ones((1, 4), np.float32), y=np.array([[1, 2]]))
    found = open_targets(tmp_path / "b.npz", VALUES)
    assert found.labels == [[1.0, 2.0]]
    assert found.is_features


@pytest.mark.parametrize(
    ("name", "text", "contract", "words"),
    [
        ("a.csv", "path,kind\na.png,red\n", SETS, "label_1, label_2"),
        ("a.csv", "path\n", SETS, "no rows"),
        ("a.csv", "path,label,size\na.png,red,3\n", SETS, "path is needed"),
        ("a.csv", "path,label_1,label_2\na.png,red\n", SETS, "line 2: 2 columns"),
        ("a.csv", "path,label_1,label_2\na.png,red,red\n", SETS, "line 2: a label is given twice"),
        ("a.csv", "path,kg\na.png,1\n", VALUES, "named cm"),
        ("a.csv", "path,kg,cm\na.png,1,tall\n", VALUES, "line 2: 'tall' is no finite number"),
        ("a.jsonl", '{"path": "a.png"}', SETS, 'needs "labels"'),
        ("a.jsonl", '{"path": "a.png", "labels": "red"}', SETS, 'needs "labels"'),
        ("a.jsonl", '{"path": "a.png", "values": {"kg": 1}}', VALUES, "an object with kg, cm"),
        ("a.jsonl", '{"path": "a.png", "values": {"kg": 1, "cm": true}}', VALUES, "no finite number"),
        ("a.jsonl", "path", SETS, "line 1 is not JSON"),
        ("a.jsonl", '{"x": [1, 2, 3], "labels": []}', TENSORS, r"shape \[3\]"),
        ("a.jsonl", '{"x": [1, "a"], "labels": []}', TENSORS, "numbers"),
        ("a.txt", "", SETS, "task is multilabel"),
    ],
)
def test_a_wrong_file_is_refused_in_words(
    tmp_path: Path, name: str, text: str, contract: models_pb2.InputContract, words: str
) -> None:
    with pytest.raises(InvalidArgument, match=words):
        open_targets(written(tmp_path, name, text), contract)
