"""What every memory must do, whatever file it lives in: each kind in everlearn/memories is picked up by itself."""

from __future__ import annotations

import numpy as np
import pytest

import everlearn.memories
from everlearn import plugins
from everlearn.errors import DataLossError, InputError, SpecError
from everlearn.memories import memory_for

KINDS = plugins.kinds(everlearn.memories)
FEATURES = np.arange(-6, 6, dtype=np.int16).reshape(4, 3)
LABELS = ["b", "a", "b", "c"]


def test_the_documented_memory_is_there() -> None:
    assert "statistics" in KINDS


def test_an_unknown_memory_is_refused_by_field() -> None:
    with pytest.raises(SpecError, match="statistics") as caught:
        memory_for("samples")
    assert caught.value.field == "spec.memory.kind"


@pytest.mark.parametrize("kind", KINDS)
class TestEveryMemory:
    def test_begins_empty_with_the_declared_labels(self, kind: str) -> None:
        memory = memory_for(kind).create(3, ["z", "y"])
        assert memory.sums.labels == ["z", "y"]
        assert memory.sums.samples == 0

    def test_counts_what_it_integrates(self, kind: str) -> None:
        memory = memory_for(kind).create(3, ["a"])
        memory.integrate(FEATURES, LABELS)
        memory.integrate(FEATURES[:0], [])
        assert dict(zip(memory.sums.labels, memory.sums.count_C, strict=True)) == {"a": 1, "b": 2, "c": 1}

    def test_saved_and_loaded_it_is_bit_identical_and_goes_on_learning(self, kind: str) -> None:
        memory = memory_for(kind).create(3, ["unused"])
        memory.integrate(FEATURES, LABELS)
        loaded = memory_for(kind).from_bytes(memory.to_bytes())
        assert loaded.to_bytes() == memory.to_bytes()
        for each in (memory, loaded):
            each.integrate(FEATURES[::-1], LABELS)
        assert loaded.sums == memory.sums
        assert loaded.to_bytes() == memory.to_bytes()

    def test_refuses_lengths_that_disagree_and_learns_nothing(self, kind: str) -> None:
        memory = memory_for(kind).create(3, [])
        with pytest.raises(InputError):
            memory.integrate(FEATURES, LABELS[:-1])
        assert memory.sums.samples == 0

    @pytest.mark.parametrize("data", [b"", b"garbage", b"EVLSUMS1" + bytes(99)])
    def test_bytes_that_are_no_memory_are_data_loss(self, kind: str, data: bytes) -> None:
        with pytest.raises(DataLossError):
            memory_for(kind).from_bytes(data)

    def test_its_size_does_not_grow_with_samples(self, kind: str) -> None:
        memory = memory_for(kind).create(3, [])
        memory.integrate(FEATURES, LABELS)
        size = len(memory.to_bytes())
        for _ in range(50):
            memory.integrate(FEATURES, LABELS)
        assert len(memory.to_bytes()) <= size + 16  # the counts gain digits
