"""Sums of samples break no invariant, whatever the samples; a change of one number that cannot be is found."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests import gradient_streams as streams

from everlearn import invariants
from everlearn.errors import DataLossError
from everlearn.learners.inspection import inspect
from everlearn.memories import memory_for
from everlearn.outputs import Output
from everlearn.spec.load import parse
from everlearn.spec.model import Memory, ModelSpec
from everlearn.sums import Sums
from everlearn.target_sums import TargetSums

LIMIT = 2047
BATCHES = st.lists(
    st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 40), st.integers(1, 5), st.sampled_from([1, 7, LIMIT])),
    max_size=6,
)


def spec_of(**sections: object) -> ModelSpec:
    declared = {"backbone": {"source": "identity"}, "input": {"modality": "tensor", "shape": [4], "range": [0, 1]}}
    return parse(json.dumps({"metadata": {"name": "m"}, "spec": {**declared, **sections}})).spec


def sums_of(batches: list[tuple[int, int, int, int]], dim: int) -> Sums:
    sums = Sums(dim, ["never"])
    for seed, rows, classes, largest in batches:
        random = np.random.default_rng(seed)
        quantised = random.integers(-largest, largest + 1, (rows, dim)).astype(np.int16)
        sums.add(quantised, [f"c{random.integers(classes)}" for _ in range(rows)])
    return sums


@settings(max_examples=60, deadline=None)
@given(BATCHES, st.integers(1, 12))
def test_sums_of_any_samples_break_nothing(batches: list[tuple[int, int, int, int]], dim: int) -> None:
    assert invariants.of_sums(sums_of(batches, dim), limit=LIMIT) == []


@settings(max_examples=40, deadline=None)
@given(BATCHES.filter(lambda batches: any(rows for _, rows, _, _ in batches)), st.integers(2, 8), st.data())
def test_an_odd_change_of_one_sum_or_square_is_found(
    batches: list[tuple[int, int, int, int]], dim: int, data: st.DataObject
) -> None:
    sums, feature = sums_of(batches, dim), data.draw(st.integers(0, dim - 1))
    if data.draw(st.booleans()):
        sums._lower_dd[feature, feature] += 2 * data.draw(st.integers(0, 50)) + 1
    else:
        row = int(np.flatnonzero(sums.count_C)[0])
        sums._sum_Cd[row, feature] -= 2 * data.draw(st.integers(0, 50)) + 1
    assert invariants.of_sums(sums, limit=LIMIT) != []


def test_a_matrix_below_its_means_is_found_however_small_the_defect_is_against_the_sums() -> None:
    sums = sums_of([(1, 40, 3, LIMIT)] * 5, 6)
    least = np.linalg.eigvalsh(sums.gram_dd - _between(sums))[0]
    vector = np.linalg.eigh(sums.gram_dd - _between(sums))[1][:, 0]
    whole = np.rint(1.01 * least * np.outer(vector, vector) / 2) * 2  # even: not to be found by parity
    sums._lower_dd[:] -= np.tril(whole)
    assert any("least eigenvalue" in text for text in invariants.of_sums(sums, limit=LIMIT))


def _between(sums: Sums) -> np.ndarray:  # type: ignore[type-arg]  # [d, d]
    learned = sums.count_C > 0
    return (sums.sum_Cd[learned] / sums.count_C[learned][:, None]).T @ sums.sum_Cd[learned]


def test_sums_that_decayed_or_that_targets_share_break_nothing_until_they_are_damaged() -> None:
    random = np.random.default_rng(0)
    decayed = Sums(5)
    for _ in range(20):
        decayed.add(random.integers(-9, 10, (8, 5)).astype(np.int16), list("aabbccdd"), keep=0.9)
    assert invariants.of_sums(decayed, limit=LIMIT) == []
    decayed._lower_dd[1, 1] = -1.0
    assert invariants.of_sums(decayed) != []
    sets = TargetSums(5)
    sets.add_sets(random.integers(-9, 10, (3, 5)).astype(np.int16), [["a"], ["a", "b"], []])
    assert invariants.of_targets(sets, limit=LIMIT) == []
    sets._sum_K[0] += 2
    assert invariants.of_targets(sets) != []
    values = TargetSums(5, outputs=[Output(name="x", low=0.0, high=1.0)])
    values.add_values(random.integers(-9, 10, (30, 5)).astype(np.int16), random.random((30, 1)))
    assert invariants.of_targets(values, limit=LIMIT) == []
    values._cross_Kd[0, 2] = 1e12
    assert invariants.of_targets(values) != []


@pytest.mark.parametrize("kind", ["statistics", "per_class_statistics", "latents", "none"])
def test_what_each_memory_leaves_is_inspected(kind: str) -> None:
    memory = memory_for(kind).create(4, ["a", "b"], Memory(kind=kind))
    memory.integrate(np.arange(12, dtype=np.int16).reshape(3, 4), ["a", "b", "a"])
    spec = spec_of().model_copy(update={"memory": Memory(kind=kind)})
    found = inspect(spec, memory.to_bytes())
    assert (found.samples, found.samples_of, found.broken) == (3, {"a": 2, "b": 1}, ())
    data = bytearray(memory.to_bytes())
    data[-40] ^= 1
    with pytest.raises(DataLossError):
        inspect(spec, bytes(data))


def test_what_a_gradient_learner_leaves_is_inspected_without_torch() -> None:
    learner = streams.learner(streams.recipe(memory={"kind": "latents", "capacity": 50}))
    for batch in streams.stream(batches=3):
        learner.learn(*batch)
    memory = {"kind": "latents", "capacity": 50}
    spec = spec_of(head={"kind": "linear"}, memory=memory, retention={"features": "latents"})
    assert spec.by_gradient
    data = learner.to_bytes()
    found = inspect(spec, data)
    assert (found.samples, sum(found.samples_of.values()), found.broken) == (96, 96, ())
    with pytest.raises(DataLossError, match="sha256"):
        inspect(spec, data[:-50] + bytes([data[-50] ^ 1]) + data[-49:])
    with pytest.raises(DataLossError, match="do not begin"):
        inspect(spec_of(), data)
