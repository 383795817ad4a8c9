"""Batches that are counted together are counted as they would be one by one."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from everlearn.metrics.prequential import Prequential

LABELS = ("cat", "dog", "elk")


def counted(seed: int, rows: list[int], reads: list[bool]) -> dict[str, Any]:
    """The record of a stream: three clients, a head that changes, labels that it does not know, rows that overflow."""
    random, record = np.random.default_rng(seed), Prequential(window=80)
    known = LABELS[:2]
    for turn, (size, read) in enumerate(zip(rows, reads, strict=True)):
        if turn % 7 == 6:
            known = (*LABELS[: 2 + turn % 2],)
        labels = [LABELS[place] for place in random.integers(0, 3, size)]
        scores_BC = random.normal(0, 1, (size, len(known))).astype(np.float32)
        scores_BC[:, 0] += [2.0 * (label == known[0]) for label in labels]
        scores_BC[random.random(size) < 0.05] = np.inf
        features_Bd = random.normal(0, 1, (size, 4)).astype(np.float32)
        record.test(labels, f"c{turn % 3}", scores_BC=scores_BC if turn else None, known=known, features_Bd=features_Bd)
        if read:
            record.settle()
    return json.loads(json.dumps(record.to_dict()))


def assert_alike(one: Any, other: Any) -> None:
    """Equal, floats but for their rounding."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for name in one:
            assert_alike(one[name], other[name])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for left, right in zip(one, other, strict=True):
            assert_alike(left, right)
    elif isinstance(one, float):
        assert one == pytest.approx(other, rel=1e-9, abs=1e-9)
    else:
        assert one == other


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.lists(st.tuples(st.integers(0, 24), st.booleans()), min_size=1, max_size=40))
def test_when_batches_are_counted_shows_nowhere(seed: int, turns: list[tuple[int, bool]]) -> None:
    rows, reads = [size for size, _ in turns], [read for _, read in turns]
    one_by_one = counted(seed, rows, [True] * len(rows))
    assert_alike(counted(seed, rows, reads), one_by_one)
    assert_alike(counted(seed, rows, [False] * len(rows)), one_by_one)
