"""What waits for a label: never more than declared, never longer, and each sample once."""

from __future__ import annotations

import gc
import itertools
import tracemalloc

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from everlearn.errors import EverlearnError, InputError, PreconditionError
from everlearn.spec.late_labels import BESIDE_BYTES, LateLabels
from everlearn.values import FeatureScale
from everlearn_server.engine.batches import Derived
from everlearn_server.engine.sample_ids import SampleIds
from everlearn_server.engine.waiting_room import EXPIRED, GONE, LEARNED, UNKNOWN, WaitingRoom

DIM = 4
SCALE = FeatureScale(step_d=np.full(DIM, 0.5, np.float32))
DAY_S = 86_400


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def rows(count: int, first: int = 0) -> npt.NDArray[np.float32]:
    return np.arange(first, first + count, dtype=np.float32)[:, None] * np.ones(DIM, np.float32)


def batch(*ids: str) -> Derived:
    nothing = np.empty((0, 0), np.float32)
    return Derived(
        client="c", epoch=1, sequence=1, features_Bd=nothing, labels=("x",) * len(ids), sample_ids=tuple(ids)
    )


def reason(refusal: EverlearnError | None) -> str:
    return refusal.reason if refusal is not None else ""


@settings(max_examples=60, deadline=None)
@given(
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("give"), st.integers(0, 12)),
            st.tuples(st.just("wait"), st.integers(0, 40)),
            st.tuples(st.just("label"), st.integers(0, 60)),
        ),
        max_size=40,
    ),
    capacity=st.integers(1, 10),
    ttl_s=st.integers(1, 60),
)
def test_the_room_is_the_list_of_what_was_given_lately_and_not_labelled(
    steps: list[tuple[str, int]], capacity: int, ttl_s: int
) -> None:
    clock = Clock()
    room = WaitingRoom(LateLabels(ttl_s=ttl_s, capacity=capacity), SCALE, clock_s=clock)
    given: list[tuple[str, float]] = []
    waiting: list[int] = []
    labelled: set[int] = set()
    for what, size in steps:
        waiting = [number for number in waiting if clock.now_s - given[number][1] < ttl_s]
        if what == "give":
            told = [str(len(given) + place) for place in range(size)]
            ids = room.give(rows(size, len(given)), told)
            waiting += range(len(given), len(given) + size)
            given += [(each, clock.now_s) for each in ids]
            waiting = waiting[max(0, len(waiting) - capacity) :]
        elif what == "wait":
            clock.now_s += size + 0.25
        elif given:
            number = size % len(given)
            asked = batch(given[number][0])
            refusal = room.refusal(asked)
            assert (refusal is None) == (number in waiting)
            if refusal is None:
                np.testing.assert_array_equal(asked.features_Bd, rows(1, number))
                room.joined([given[number][0]], ("x",))
                labelled.add(number)
                waiting.remove(number)
            elif clock.now_s - given[number][1] >= ttl_s + 1:
                assert refusal.reason == EXPIRED
            elif number in labelled:
                assert refusal.reason in (LEARNED, GONE, EXPIRED)
            else:
                assert refusal.reason in (GONE, EXPIRED)
        assert len(room) <= capacity
    figures = room.figures()
    assert figures.joined == len(labelled)
    assert figures.given == len(given)
    assert figures.given == figures.waiting + figures.joined + figures.expired + figures.left_early


def test_a_label_after_a_day_finds_its_features_and_after_seven_it_has_expired() -> None:
    clock = Clock()
    room = WaitingRoom(LateLabels(), SCALE, clock_s=clock)
    early, late = room.give(rows(2), ["cat", "dog"])
    clock.now_s += DAY_S
    asked = batch(early)
    assert room.refusal(asked) is None
    np.testing.assert_array_equal(asked.features_Bd, rows(1))
    room.joined([early], ("cat",))
    assert reason(room.refusal(batch(early))) == LEARNED
    clock.now_s += 6 * DAY_S - 1
    assert room.refusal(batch(late)) is None
    clock.now_s += 1
    refusal = room.refusal(batch(late))
    assert reason(refusal) == EXPIRED
    assert refusal is not None
    assert refusal.field == "batch.samples.ids[0]"
    figures = room.figures()
    assert (figures.joined, figures.correct, figures.expired, figures.waiting) == (1, 1, 1, 0)
    assert figures.delay_median_s == figures.delay_p90_s == DAY_S
    assert figures.coverage == 0.5


def test_a_batch_of_which_one_does_not_wait_is_refused_whole_and_names_it() -> None:
    room = WaitingRoom(LateLabels(), SCALE)
    first, second = room.give(rows(2), ["a", "b"])
    refusal = room.refusal(batch(first, second, "00" * 16))
    assert isinstance(refusal, PreconditionError)
    assert (refusal.reason, refusal.field) == (UNKNOWN, "batch.samples.ids[2]")
    assert "00000" not in refusal.message
    twice = room.refusal(batch(first, second, first.upper()))
    assert isinstance(twice, InputError)
    assert twice.field == "batch.samples.ids[2]"
    assert room.refusal(batch(first, second)) is None


@pytest.mark.parametrize("wrong", ["", "zz", "00" * 15, "00" * 17, "aa " * 16, "é" * 32, "0" * 100_000])
def test_what_is_no_id_is_unknown(wrong: str) -> None:
    room = WaitingRoom(LateLabels(), SCALE)
    room.give(rows(1), ["a"])
    assert reason(room.refusal(batch(wrong))) == UNKNOWN


def test_ids_of_one_room_say_nothing_in_another_and_nothing_of_their_order() -> None:
    ids = SampleIds()
    sealed = ids.seal(0, 2000, 7)
    assert [ids.open(each) for each in sealed] == [(number, 7) for number in range(2000)]
    assert len(set(sealed)) == 2000
    other = SampleIds()
    assert all(other.open(each) is None for each in sealed)
    # Numbers that differ by one share no more bits than any two texts of 128 bits: 64 are the same, give or take.
    same = [128 - (int(a, 16) ^ int(b, 16)).bit_count() for a, b in itertools.pairwise(sealed)]
    assert 63 < float(np.mean(same)) < 65


def test_tighter_limits_hold_at_once_and_an_erased_client_waits_no_more() -> None:
    clock = Clock()
    room = WaitingRoom(LateLabels(ttl_s=100, capacity=10), SCALE, clock_s=clock)
    old = room.give(rows(2), ["a", "a"])
    clock.now_s += 50
    ann, bob = room.give(rows(1), ["a"], client="ann")[0], room.give(rows(1), ["a"], client="bob")[0]
    room.configure(LateLabels(ttl_s=50, capacity=10))
    assert len(room) == 2
    assert reason(room.refusal(batch(old[0]))) == EXPIRED
    room.forget("ann")
    assert reason(room.refusal(batch(ann))) == GONE
    assert room.refusal(batch(bob)) is None
    room.configure(LateLabels(ttl_s=5000, capacity=1))
    assert len(room) == 1
    assert reason(room.refusal(batch(old[0]))) == GONE  # it expired by what was declared then


def test_bytes_of_what_waits_are_little_more_than_its_features() -> None:
    dim, count = 1280, 2000
    scale = FeatureScale(step_d=np.full(dim, 0.01, np.float32))
    room = WaitingRoom(LateLabels(capacity=count), scale)
    features_Bd = np.random.default_rng(0).normal(size=(100, dim)).astype(np.float32)
    room.give(features_Bd, ["label"] * 100)  # what is made once is there
    gc.collect()
    tracemalloc.start()
    for _ in range(0, count - 100, 100):
        room.give(features_Bd, ["label"] * 100)
    held = tracemalloc.get_traced_memory()[0] / (count - 100)
    tracemalloc.stop()
    assert len(room) == count
    assert 2 * dim < held < 2 * dim + BESIDE_BYTES
