"""What a caller may hand over as labels: names, lists of names, or numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from everlearn_client import Batch, InvalidArgument, Tensors, split_batch
from everlearn_client.targets import to_targets
from everlearn_protos.arrays import from_tensor
from everlearn_protos.v1 import learn_pb2


def sent(truth: Any) -> learn_pb2.Batch:
    message = learn_pb2.Batch()
    to_targets(truth, len(truth)).put(message)
    return message


def test_names_are_labels() -> None:
    assert list(sent(["cat", "dog"]).labels) == ["cat", "dog"]
    assert list(sent(np.array(["cat", "dog"])).labels) == ["cat", "dog"]
    assert sent([]) == learn_pb2.Batch()


def test_lists_tuples_and_sets_of_names_are_sets_of_labels_in_a_stable_order() -> None:
    message = sent([["red", "round"], (), {"b", "a", "c"}])
    assert [list(each.labels) for each in message.label_sets] == [["red", "round"], [], ["a", "b", "c"]]


@pytest.mark.parametrize("truth", [np.array([[1.5, 2]]), np.array([[1.5, 2]], np.float32), [[1.5, 2]], [(1.5, 2)]])
def test_numbers_are_values(truth: Any) -> None:
    values = from_tensor(sent(truth).values)
    assert values.dtype == np.float32
    assert values.tolist() == [[1.5, 2.0]]


def test_a_vector_of_floats_is_one_value_a_sample() -> None:
    assert from_tensor(sent(np.array([1.0, 2.0])).values).tolist() == [[1.0], [2.0]]


@pytest.mark.parametrize(
    ("truth", "samples", "field", "words"),
    [
        (["a"], 2, "labels", "2 samples and 1 as labels"),
        ("ab", 2, "labels", "one str"),
        ([7, 8], 2, "labels[0]", "labels are names"),
        ([["a"], "b"], 2, "labels[1]", "list of names"),
        ([["a"], [7]], 2, "labels[1]", "list of names"),
        ([[1.0], [1.0, 2.0]], 2, "labels", "different numbers"),
        (np.zeros((1, 2, 3)), 1, "labels", r"\[N, K\]"),
    ],
)
def test_anything_else_is_refused_by_field(truth: Any, samples: int, field: str, words: str) -> None:
    with pytest.raises(InvalidArgument, match=words) as caught:
        to_targets(truth, samples)
    assert caught.value.field == field


def test_a_batch_is_split_with_its_targets() -> None:
    values = np.arange(12, dtype=np.float32).reshape(6, 2)
    for truth in ([["a"], [], ["b", "c"], ["a"], ["d"], []], values):
        parts = list(split_batch(Batch(Tensors(values), truth), max_samples=4))
        assert [len(part.labels) for part in parts] == [4, 2]
        assert [list(row) for part in parts for row in part.labels] == [list(row) for row in truth]
