"""What every memory must do, whatever file it lives in: each kind in everlearn/memories is picked up by itself."""

from __future__ import annotations

import numpy as np
import pytest

import everlearn.memories
from everlearn import plugins
from everlearn.errors import DataLossError, InputError, InvalidError, PreconditionError, SpecError
from everlearn.memories import memory_for
from everlearn.memories.base import Memory, Origin
from everlearn.spec.model import Memory as Declared
from everlearn.sums import Sums

KINDS = plugins.kinds(everlearn.memories)
FEATURES = np.arange(-6, 6, dtype=np.int16).reshape(4, 3)
LABELS = ["b", "a", "b", "c"]


def test_the_documented_memories_are_there() -> None:
    assert set(KINDS) >= {"statistics", "per_class_statistics", "latents", "none"}


def test_an_unknown_memory_is_refused_by_field() -> None:
    with pytest.raises(SpecError, match="statistics") as caught:
        memory_for("samples")
    assert caught.value.field == "spec.memory.kind"


def by_label(memory: Memory) -> dict[str, int]:
    return dict(zip(memory.labels, memory.seen_C.tolist(), strict=True))


@pytest.mark.parametrize("kind", KINDS)
class TestEveryMemory:
    def test_begins_empty_with_the_declared_labels(self, kind: str) -> None:
        memory = memory_for(kind).create(3, ["z", "y"])
        assert memory.labels == memory.sums.labels == ["z", "y"]
        assert memory.dim == memory.sums.dim == 3
        assert memory.seen == memory.sums.samples == 0

    @pytest.mark.parametrize("dim", [0, -1])
    def test_has_at_least_one_feature(self, kind: str, dim: int) -> None:
        with pytest.raises(InvalidError) as caught:
            memory_for(kind).create(dim, [])
        assert caught.value.field == "dim"

    def test_refuses_the_options_of_another_kind(self, kind: str) -> None:
        other = Declared(kind="none" if kind != "none" else "statistics")
        with pytest.raises(InvalidError) as caught:
            memory_for(kind).create(3, [], other)
        assert caught.value.field == "spec.memory.kind"
        with pytest.raises(InvalidError):
            memory_for(kind).create(3, []).configure(other)

    def test_counts_what_it_integrates(self, kind: str) -> None:
        memory = memory_for(kind).create(3, ["a"])
        memory.integrate(FEATURES, LABELS)
        memory.integrate(FEATURES[:0], [])
        assert by_label(memory) == {"a": 1, "b": 2, "c": 1}
        assert memory.seen == 4

    def test_declares_classes_once_and_keeps_their_places(self, kind: str) -> None:
        memory = memory_for(kind).create(3, ["a"])
        memory.declare(["c", "b"])
        memory.integrate(FEATURES, [*LABELS[:3], "new"])
        assert memory.labels == memory.sums.labels == ["a", "c", "b", "new"]
        with pytest.raises(InputError):
            memory.declare(["other", "c"])
        assert memory.labels == ["a", "c", "b", "new"]

    def test_its_sums_are_of_the_rows_it_keeps_and_all_where_it_says_so(self, kind: str) -> None:
        memory, all_of_them = memory_for(kind).create(3, []), Sums(3)
        memory.integrate(FEATURES, LABELS)
        all_of_them.add(FEATURES, LABELS)
        if kind == "none":
            assert memory.sums.samples == 0
        else:
            assert memory.sums.digest() == all_of_them.digest()  # four small rows, so a bounded memory has all, too
        if memory.is_exact:
            for _ in range(500):
                memory.integrate(FEATURES, LABELS)
                all_of_them.add(FEATURES, LABELS)
            assert memory.sums.digest() == all_of_them.digest()

    def test_draws_rows_of_its_classes_alike_and_the_same_for_the_same_generator(self, kind: str) -> None:
        memory = memory_for(kind).create(3, ["unseen"])
        memory.integrate(np.tile(FEATURES, (8, 1)), LABELS * 8)
        before = memory.digest()
        drawn = memory.draw(30, np.random.default_rng(3))
        assert memory.digest() == before
        assert drawn.quantised_Rd.dtype == np.int16
        assert drawn.quantised_Rd.shape == (len(drawn.class_R), 3)
        if kind == "none":
            assert not len(drawn.class_R)
        else:
            assert np.bincount(drawn.class_R).tolist() == [0, 10, 10, 10]
        again = memory.draw(30, np.random.default_rng(3))
        assert np.array_equal(again.quantised_Rd, drawn.quantised_Rd)
        assert np.array_equal(again.class_R, drawn.class_R)

    @pytest.mark.parametrize("count", [0, 1, 5])
    def test_an_empty_memory_has_nothing_to_draw(self, kind: str, count: int) -> None:
        drawn = memory_for(kind).create(3, ["a"]).draw(count, np.random.default_rng(0))
        assert drawn.quantised_Rd.shape == (0, 3)
        assert drawn.class_R.shape == (0,)

    def test_forgets_a_class_or_says_that_it_cannot(self, kind: str) -> None:
        memory = memory_for(kind).create(3, [])
        memory.integrate(FEATURES, LABELS)
        before = memory.to_bytes()
        with pytest.raises(InputError) as caught:
            memory.forget_class("unknown")
        assert caught.value.field == "label"
        if kind == "statistics":
            with pytest.raises(PreconditionError) as refused:
                memory.forget_class("b")
            assert refused.value.reason == "NOT_SEPARABLE"
            assert memory.to_bytes() == before
        else:
            memory.forget_class("b")
            assert by_label(memory) == {"b": 0, "a": 1, "c": 1}  # its place stays
            assert memory.labels == ["b", "a", "c"]
            assert memory.sums.count_C[0] == 0
            assert 0 not in memory.draw(10, np.random.default_rng(0)).class_R
            memory.integrate(FEATURES, LABELS)
            assert by_label(memory)["b"] == 2

    def test_nothing_expires_unless_declared(self, kind: str) -> None:
        memory = memory_for(kind).create(3, [])
        memory.integrate(FEATURES, LABELS, origin=Origin(client="edge", time_s=10.0))
        assert memory.expire(1e12) == 0
        assert memory.seen == 4

    def test_its_digest_changes_with_what_it_learns(self, kind: str) -> None:
        memory = memory_for(kind).create(3, [])
        empty = memory.digest()
        memory.integrate(FEATURES, LABELS)
        assert memory.digest() != empty
        assert memory_for(kind).from_bytes(memory.to_bytes()).digest() == memory.digest()

    def test_saved_and_loaded_it_is_bit_identical_and_goes_on_learning(self, kind: str) -> None:
        memory = memory_for(kind).create(3, ["unused"])
        memory.integrate(FEATURES, LABELS, origin=Origin(client="one", time_s=1.5))
        loaded = memory_for(kind).from_bytes(memory.to_bytes())
        assert loaded.to_bytes() == memory.to_bytes()
        for each in (memory, loaded):
            each.integrate(FEATURES[::-1], LABELS, origin=Origin(client="two", time_s=2.5))
        assert loaded.sums == memory.sums
        assert loaded.to_bytes() == memory.to_bytes()

    def test_saved_between_draws_it_goes_on_to_the_same_rows(self, kind: str) -> None:
        straight, saved = (memory_for(kind).create(3, []) for _ in range(2))
        generators = [np.random.default_rng(5) for _ in range(2)]
        for step in range(12):
            rows = np.random.default_rng(step).integers(-900, 900, (9, 3)).astype(np.int16)
            for each in (straight, saved):
                each.integrate(rows, ["a", "b", "c"] * 3)
            drawn, again = (each.draw(8, random) for each, random in zip((straight, saved), generators, strict=True))
            assert np.array_equal(drawn.quantised_Rd, again.quantised_Rd)
            saved = memory_for(kind).from_bytes(saved.to_bytes())
        assert saved.to_bytes() == straight.to_bytes()

    def test_set_down_and_taken_up_again_it_is_what_it_was(self, kind: str) -> None:
        straight, rested = (memory_for(kind).create(3, []) for _ in range(2))
        for step in range(12):
            rows = np.random.default_rng(step).integers(-900, 900, (9, 3)).astype(np.int16)
            for each in (straight, rested):
                each.integrate(rows, ["a", "b", "c"] * 3)
            data, held_bytes = rested.to_bytes(), rested.held_bytes
            assert rested.set_down(lambda data=data: data) == held_bytes  # type: ignore[misc]
            assert rested.held_bytes == 0
            assert rested.seen_C.tolist() == straight.seen_C.tolist()
            rested.declare([f"later {step}"])
            straight.declare([f"later {step}"])
        assert rested.sums == straight.sums
        assert rested.to_bytes() == straight.to_bytes()

    def test_refuses_lengths_that_disagree_and_learns_nothing(self, kind: str) -> None:
        memory = memory_for(kind).create(3, [])
        before = memory.to_bytes()
        for features, labels in [(FEATURES, LABELS[:-1]), (FEATURES[:, :2], LABELS), (FEATURES, [*LABELS[:-1], ""])]:
            with pytest.raises(InputError):
                memory.integrate(features, labels)
        assert memory.to_bytes() == before

    @pytest.mark.parametrize("data", [b"", b"garbage", b"EVLSUMS1" + bytes(99), b"EVLMEMO1" + bytes(99)])
    def test_bytes_that_are_no_memory_are_data_loss(self, kind: str, data: bytes) -> None:
        with pytest.raises(DataLossError):
            memory_for(kind).from_bytes(data)

    def test_a_flipped_bit_or_a_missing_end_is_data_loss(self, kind: str) -> None:
        memory = memory_for(kind).create(3, [])
        memory.integrate(FEATURES, LABELS)
        data = memory.to_bytes()
        for place in range(0, len(data), 7):
            with pytest.raises(DataLossError):
                memory_for(kind).from_bytes(data[:place])
            damaged = bytearray(data)
            damaged[place] ^= 1 << (place % 8)
            with pytest.raises(DataLossError):
                memory_for(kind).from_bytes(bytes(damaged))

    def test_the_bytes_of_another_kind_are_data_loss(self, kind: str) -> None:
        for other in KINDS:
            if other != kind:
                with pytest.raises(DataLossError):
                    memory_for(kind).from_bytes(memory_for(other).create(3, ["a"]).to_bytes())

    def test_its_size_stops_growing_with_samples(self, kind: str) -> None:
        options = {"capacity": 10} if kind == "latents" else {}
        memory = memory_for(kind).create(3, [], Declared(kind=kind, **options))
        for _ in range(50):
            memory.integrate(FEATURES, LABELS)
        size = len(memory.to_bytes())
        for _ in range(50):
            memory.integrate(FEATURES, LABELS)
        assert len(memory.to_bytes()) <= size + 16  # the counts gain digits
