"""Latents: bounded by capacity, age and client, balanced over classes, and the same whenever it is replayed."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from everlearn.errors import InputError, InvalidError
from everlearn.memories.base import Origin
from everlearn.memories.latents import Latents
from everlearn.spec.model import Memory as Declared

Rows = npt.NDArray[np.int16]
DIM = 4


def declared(**options: Any) -> Declared:
    return Declared(kind="latents", **{"precision": "fp16", **options})


def latents(labels: tuple[str, ...] = (), **options: Any) -> Latents:
    return Latents.create(DIM, labels, declared(**options))


def rows(*values: int) -> Rows:
    """Rows that can be told apart by their first feature."""
    return np.array([[value, -value, value // 2, 7] for value in values], np.int16)


def stream(memory: Latents, batches: int = 40, seed: int = 1, classes: int = 5, *, first_s: float = 0.0) -> None:
    random = np.random.default_rng(seed)
    for step in range(batches):
        labels = [f"c{index}" for index in random.integers(0, 1 + min(classes - 1, step // 3), 16)]
        features = random.integers(-2047, 2048, (16, memory.dim)).astype(np.int16)
        logits = random.normal(size=(16, min(len(memory.labels), 3))).astype(np.float32)
        origin = Origin(client=f"client {random.integers(6)}", time_s=first_s + step)
        memory.integrate(features, labels, origin=origin, logits_BC=logits)


def values(memory: Latents) -> set[int]:
    return set(memory.draw(4000, np.random.default_rng(0)).quantised_Rd[:, 0].tolist())


def test_all_rows_are_kept_as_they_came_while_there_is_room() -> None:
    memory = latents(capacity=10)
    memory.integrate(rows(1, 2, 3), ["a", "b", "a"])
    memory.integrate(rows(4), ["b"])
    drawn = memory.draw(4, np.random.default_rng(0))
    assert sorted(drawn.quantised_Rd.tolist()) == rows(1, 2, 3, 4).tolist()
    assert {(int(row[0]), index) for row, index in zip(drawn.quantised_Rd, drawn.class_R, strict=True)} == {
        (1, 0),
        (3, 0),
        (2, 1),
        (4, 1),
    }
    assert memory.sums.count_C.tolist() == [2, 2]
    assert drawn.logits_RC is None


def test_a_full_memory_is_shared_evenly_and_what_a_rare_class_leaves_goes_to_the_others() -> None:
    memory = latents(capacity=30)
    memory.integrate(rows(*range(500)), ["often"] * 500)
    assert memory.kept == 30
    memory.integrate(rows(501, 502), ["rare"] * 2)
    assert memory.kept_C.tolist() == [28, 2]
    memory.integrate(rows(*range(600, 700)), ["other"] * 100)
    assert memory.kept_C.tolist() == [14, 2, 14]
    assert memory.seen_C.tolist() == [500, 2, 100]


def test_with_more_classes_than_room_the_oldest_keep_a_row_each() -> None:
    memory = latents(capacity=3)
    for index in range(6):
        memory.integrate(rows(index), [f"c{index}"])
    assert memory.kept_C.tolist() == [1, 1, 1, 0, 0, 0]
    assert memory.labels == [f"c{index}" for index in range(6)]


@pytest.mark.parametrize("selection", ["reservoir", "herding"])
def test_a_stream_is_bounded_whatever_comes(selection: str) -> None:
    memory = latents(capacity=50, selection=selection, client_share=0.3, ttl_s=20, logits=True, precision="int8")
    stream(memory, 60)
    assert 0 < memory.kept <= 50
    by_client = np.bincount(memory._rows.client_N)
    assert by_client.max() <= 15
    assert memory._rows.time_s_N.min() > 59 - 20
    assert memory.kept_C.max() - memory.kept_C.min() <= 4


@pytest.mark.parametrize("selection", ["reservoir", "herding"])
@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_saved_anywhere_on_the_way_it_ends_in_the_same_bytes(selection: str, precision: str) -> None:
    options = {"capacity": 40, "selection": selection, "precision": precision, "client_share": 0.5, "ttl_s": 30}
    straight, restarted = latents(logits=True, **options), latents(logits=True, **options)
    for part in range(6):
        stream(straight, 8, seed=part, first_s=8 * part)
        stream(restarted, 8, seed=part, first_s=8 * part)
        restarted = Latents.from_bytes(restarted.to_bytes())
        assert restarted.to_bytes() == straight.to_bytes()
    drawn, again = (memory.draw(64, np.random.default_rng(2)) for memory in (straight, restarted))
    assert np.array_equal(drawn.quantised_Rd, again.quantised_Rd)
    assert drawn.logits_RC is not None
    assert again.logits_RC is not None
    assert np.array_equal(drawn.logits_RC, again.logits_RC, equal_nan=True)


def test_rows_expire_when_time_goes_on_in_batches_or_at_rest() -> None:
    memory = latents(ttl_s=60)
    memory.integrate(rows(1), ["a"], origin=Origin(time_s=1000.0))
    memory.integrate(rows(2), ["a"], origin=Origin(time_s=1059.0))
    assert values(memory) == {1, 2}
    memory.integrate(rows(3), ["a"], origin=Origin(time_s=1060.0))
    assert values(memory) == {2, 3}
    assert memory.expire(1000.0) == 0  # time does not run backwards
    assert memory.expire(1119.5) == 1
    assert values(memory) == {3}
    assert memory.expire(1120.0) == 1
    assert memory.kept == 0
    assert memory.seen == 3


def test_one_client_has_at_most_its_share_of_its_classes_alike() -> None:
    memory = latents(capacity=20, client_share=0.25)
    memory.integrate(rows(*range(1, 41)), ["a"] * 40, origin=Origin(client="loud"))
    assert memory.kept == 5
    memory.integrate(rows(*range(41, 61)), ["b"] * 20, origin=Origin(client="loud"))
    assert sorted(memory.kept_C.tolist()) == [2, 3]
    for client in ("x", "y", "z", "w"):
        memory.integrate(rows(*range(100, 110)), ["a"] * 10, origin=Origin(client=client))
    assert memory.kept == 20
    assert np.bincount(memory._rows.client_N).max() == 5


def test_a_client_without_rows_leaves_no_name_on_disk() -> None:
    memory = latents(ttl_s=5)
    memory.integrate(rows(1), ["a"], origin=Origin(client="gone-away", time_s=1.0))
    memory.integrate(rows(2), ["a"], origin=Origin(client="still-here", time_s=9.0))
    assert b"gone-away" not in memory.to_bytes()
    assert b"still-here" in memory.to_bytes()


def test_a_client_that_comes_back_after_its_rows_have_gone_leaves_no_trace_of_a_restart() -> None:
    straight, restarted = latents(ttl_s=5), latents(ttl_s=5)
    for time_s, client in ((1.0, "b"), (4.0, "a"), (8.0, "c"), (8.5, "b"), (8.6, "a")):
        for each in (straight, restarted):
            each.integrate(rows(int(time_s)), ["x"], origin=Origin(client=client, time_s=time_s))
        restarted = Latents.from_bytes(restarted.to_bytes())
        assert restarted.to_bytes() == straight.to_bytes()


def test_many_clients_that_come_once_do_not_fill_the_memory_with_names() -> None:
    memory, twin = latents(capacity=8), latents(capacity=8)
    for index in range(3000):
        for each in (memory, twin):
            each.integrate(rows(index % 100), ["a"], origin=Origin(client=f"client {index}"))
        if index % 500 == 0:
            twin = Latents.from_bytes(twin.to_bytes())
    assert len(memory._arrivals.number_of) < 1100
    assert twin.to_bytes() == memory.to_bytes()


def test_a_row_comes_back_with_the_scores_it_had_and_nan_for_classes_that_came_later() -> None:
    memory = latents(("a", "b"), logits=True)
    memory.integrate(rows(1, 2), ["a", "b"], logits_BC=np.array([[0.5, -2.0], [3.0, 4.25]], np.float32))
    memory.integrate(rows(3), ["c"])  # nobody scored it
    memory.integrate(rows(4), ["c"], logits_BC=np.array([[9.0]], np.float32))  # an older head knew one class
    drawn = memory.draw(40, np.random.default_rng(0))
    assert drawn.logits_RC is not None
    nan = np.nan
    wanted = {1: [0.5, -2.0, nan], 2: [3.0, 4.25, nan], 3: [nan, nan, nan], 4: [9.0, nan, nan]}
    for row, logits in zip(drawn.quantised_Rd, drawn.logits_RC, strict=True):
        np.testing.assert_array_equal(logits, np.array(wanted[int(row[0])], np.float32))


@pytest.mark.parametrize("shape", [(1, 2), (2, 3), (2,)])
def test_scores_that_do_not_fit_are_refused_and_nothing_is_learned(shape: tuple[int, ...]) -> None:
    memory = latents(("a", "b"), logits=True)
    before = memory.to_bytes()
    with pytest.raises(InputError) as caught:
        memory.integrate(rows(1, 2), ["a", "new"], logits_BC=np.zeros(shape, np.float32))
    assert caught.value.field == "logits"
    with pytest.raises(InputError, match="finite"):
        memory.integrate(rows(1), ["a"], logits_BC=np.array([[np.inf, 0]], np.float32))
    assert memory.to_bytes() == before


def test_options_that_tighten_drop_at_once() -> None:
    memory = latents(capacity=100, logits=True)
    stream(memory)
    memory.configure(declared(capacity=20, logits=True))
    assert memory.kept_C.tolist() == [4] * 5
    size = len(memory.to_bytes())
    memory.configure(declared(capacity=20))
    assert len(memory.to_bytes()) < size
    assert memory.draw(5, np.random.default_rng(0)).logits_RC is None
    memory.configure(declared(capacity=20, client_share=0.1))
    assert np.bincount(memory._rows.client_N).max() <= 2
    memory.configure(declared(capacity=20, ttl_s=1))
    assert memory._rows.time_s_N.tolist() == [39.0] * memory.kept
    assert Latents.from_bytes(memory.to_bytes()).to_bytes() == memory.to_bytes()
    memory.configure(declared(capacity=1000))
    stream(memory, seed=2)
    assert memory.kept > 600


def test_dropped_rows_are_wiped_from_memory() -> None:
    memory = latents(capacity=100)
    memory.integrate(rows(*range(1000, 1100)), ["a"] * 100)
    memory.configure(declared(capacity=1))
    assert np.count_nonzero(memory._rows._columns["code"]) <= DIM


@pytest.mark.parametrize("changes", [{"precision": "int8"}, {"bits": 10}])
def test_what_a_stored_number_means_does_not_change_in_place(changes: dict[str, Any]) -> None:
    memory = latents()
    with pytest.raises(InvalidError) as caught:
        memory.configure(declared(**changes))
    assert caught.value.field == f"spec.memory.{next(iter(changes))}"


def test_a_forgotten_class_leaves_neither_rows_nor_scores() -> None:
    memory = latents(("a", "b"), logits=True, selection="herding", capacity=6)
    memory.integrate(rows(*range(8)), ["a", "b"] * 4, logits_BC=np.ones((8, 2), np.float32))
    memory.declare(["never"])
    memory.forget_class("never")
    memory.forget_class("a")
    drawn = memory.draw(9, np.random.default_rng(0))
    assert set(drawn.class_R.tolist()) == {1}
    assert drawn.logits_RC is not None
    assert np.isnan(drawn.logits_RC[:, 0]).all()
    assert (drawn.logits_RC[:, 1] == 1).all()
    assert memory.seen_C.tolist() == [0, 4, 0]


def test_a_draw_takes_as_many_of_each_class_and_no_row_twice_while_there_are_others() -> None:
    memory = latents()
    memory.integrate(rows(*range(100)), ["many"] * 100)
    memory.integrate(rows(200, 201), ["few"] * 2)
    drawn = memory.draw(41, np.random.default_rng(0))
    assert sorted(np.bincount(drawn.class_R).tolist()) == [20, 21]
    many = drawn.quantised_Rd[drawn.class_R == 0, 0]
    assert len(set(many.tolist())) > 0.75 * len(many)
    assert set(drawn.quantised_Rd[drawn.class_R == 1, 0].tolist()) == {200, 201}


def test_herding_keeps_a_mean_that_is_closer_to_the_class_than_chance_does() -> None:
    random = np.random.default_rng(4)
    features = np.clip(random.gamma(1.0, 200.0, (2000, 32)), 0, 2047).astype(np.int16)
    distance = {}
    for selection in ("reservoir", "herding"):
        memory = Latents.create(32, [], declared(capacity=20, selection=selection))
        for start in range(0, 2000, 25):
            memory.integrate(features[start : start + 25], ["a"] * 25)
        distance[selection] = np.linalg.norm(memory.sums.sum_Cd[0] / 20 - features.mean(axis=0))
    assert distance["herding"] < 0.5 * distance["reservoir"]


def test_herding_lets_go_the_row_that_a_brute_force_search_would() -> None:
    random = np.random.default_rng(8)
    features = random.integers(-500, 500, (6, DIM)).astype(np.int16)
    memory = latents(capacity=5, selection="herding")
    memory.integrate(features, ["a"] * 6)
    mean = features.mean(axis=0)
    left_out = min(range(6), key=lambda row: np.linalg.norm(np.delete(features, row, axis=0).mean(axis=0) - mean))
    kept = {tuple(row) for row in memory.draw(50, random).quantised_Rd.tolist()}
    assert kept == {tuple(row) for row in np.delete(features, left_out, axis=0).tolist()}


def test_herding_can_begin_on_rows_that_a_reservoir_kept_and_shrink_a_large_memory() -> None:
    memory = latents(capacity=2000)
    stream(memory, 100)
    memory.configure(declared(capacity=50, selection="herding"))
    assert memory.kept_C.tolist() == [10] * 5
    stream(memory, 5, seed=3)
    assert Latents.from_bytes(memory.to_bytes()).to_bytes() == memory.to_bytes()
    memory.configure(declared(capacity=50))
    assert memory._means is None
