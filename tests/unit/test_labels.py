"""The label table: append-only, and every refusal leaves it as it was."""

from __future__ import annotations

import numpy as np
import pytest

from everlearn.errors import InputError
from everlearn.labels import Labels


def test_a_label_keeps_the_place_at_which_it_first_came() -> None:
    table = Labels(["z"])
    assert table.take(["b", "z", "b", "a"]).tolist() == [1, 0, 1, 2]
    table.declare(["c"])
    assert list(table) == ["z", "b", "a", "c"]
    assert [table.index(label) for label in table] == [0, 1, 2, 3]
    assert table[1] == "b"
    assert "c" in table
    assert "d" not in table


@pytest.mark.parametrize("labels", [["new", "z"], ["new", "new"], ["new", ""], ["new", "\ud800"], ["new", "é" * 129]])
def test_a_refused_declaration_adds_nothing(labels: list[str]) -> None:
    table = Labels(["z"])
    with pytest.raises(InputError):
        table.declare(labels)
    assert list(table) == ["z"]


def test_a_copy_does_not_see_what_comes_later() -> None:
    table = Labels(["z"])
    twin = table.copy()
    table.take(["a"])
    assert list(twin) == ["z"]
    assert twin != table
    assert twin == Labels(["z"])


@pytest.mark.parametrize(
    ("features", "labels", "field"),
    [
        (np.zeros((2, 3), np.int16), ["a"], "labels"),
        (np.zeros((1, 3), np.int16), "a", "labels"),
        (np.zeros((1, 4), np.int16), ["a"], "features"),
        (np.zeros((1, 3), np.float32), ["a"], "features"),
        (np.zeros((2, 3), np.int16), ["a", 7], "labels[1]"),
    ],
)
def test_a_batch_that_does_not_fit_is_refused_by_field(features: object, labels: list[str], field: str) -> None:
    with pytest.raises(InputError) as caught:
        Labels().check_batch(features, labels, 3)  # type: ignore[arg-type]  # what must not be
    assert caught.value.field == field
