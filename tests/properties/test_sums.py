"""The sums are integers: nothing about order, batching, sharding or saving may show in them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from everlearn._sums_format import dump
from everlearn.errors import DataLossError, InputError, InvalidError, PreconditionError
from everlearn.sums import Sums

Batch = tuple[npt.NDArray[np.int16], list[str]]
LABELS = ["a", "b", "ß", "Z", "日本", "e"]


@st.composite
def batches(draw: st.DrawFn, dim: int = 3) -> Batch:
    rows = draw(st.integers(0, 12))
    features = draw(hnp.arrays(np.int16, (rows, dim), elements=st.integers(-32768, 32767)))
    return features, draw(st.lists(st.sampled_from(LABELS), min_size=rows, max_size=rows))


def sums_of(*parts: Batch, dim: int = 3, labels: tuple[str, ...] = ()) -> Sums:
    sums = Sums(dim, labels)
    for features, names in parts:
        sums.add(features, names)
    return sums


def stream(samples: int = 400, dim: int = 48, classes: int = 7) -> Batch:
    rng = np.random.default_rng(5)
    features = rng.integers(-2047, 2048, (samples, dim)).astype(np.int16)
    return features, [f"class {index}" for index in rng.integers(0, classes, samples)]


def shuffled_and_sharded(batch: Batch, seed: int) -> Sums:
    """The same samples: another order, other batches, up to five shards, merged in another order."""
    features, labels = batch
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(labels))
    shards = [Sums(features.shape[1]) for _ in range(rng.integers(1, 6))]
    start = 0
    while start < len(order):
        rows = order[start : start + int(rng.integers(1, 120))]
        shards[rng.integers(len(shards))].add(features[rows], [labels[row] for row in rows])
        start += len(rows)
    total = Sums(features.shape[1])
    for index in rng.permutation(len(shards)):
        total.merge(shards[index])
    return total


def by_label(sums: Sums) -> dict[str, tuple[int, bytes]]:
    return {
        label: (int(sums.count_C[row]), sums.sum_Cd[row].astype(np.int64).tobytes())
        for row, label in enumerate(sums.labels)
    }


def test_a_hundred_orders_batchings_and_shardings_give_the_same_bits() -> None:
    batch = stream()
    straight = sums_of(batch, dim=48)
    for seed in range(100):
        other = shuffled_and_sharded(batch, seed)
        assert other.digest() == straight.digest()
        assert by_label(other) == by_label(straight)
        assert other.gram_dd.tobytes() == straight.gram_dd.tobytes()


def test_control_unquantised_float32_sums_do_depend_on_the_order() -> None:
    features = stream()[0].astype(np.float32) * np.float32(0.0031)
    orders = [np.random.default_rng(seed).permutation(len(features)) for seed in range(5)]
    assert len({np.add.reduce(features[order], axis=0).tobytes() for order in orders}) > 1


@given(batches())
def test_sums_are_those_of_python_integers_at_the_extremes_of_int16(batch: Batch) -> None:
    features, labels = batch
    sums = sums_of(batch)
    rows = features.tolist()
    assert sums.gram_dd.tolist() == [[sum(x[i] * x[j] for x in rows) for j in range(3)] for i in range(3)]
    for row, label in enumerate(sums.labels):
        members = [x for x, name in zip(rows, labels, strict=True) if name == label]
        assert sums.count_C[row] == len(members)
        assert sums.sum_Cd[row].tolist() == [sum(x[j] for x in members) for j in range(3)]


def test_a_batch_of_the_extremes_larger_than_a_block_is_exact() -> None:
    features = np.full((1000, 5), -32768, np.int16)
    features[:, 1] = 32767
    sums = sums_of((features, ["x"] * 1000), dim=5)
    assert sums.gram_dd[0, 0] == 1000 * 32768**2
    assert sums.gram_dd[1, 0] == -1000 * 32768 * 32767
    assert sums.sum_Cd.tolist() == [[-32768000.0, 32767000.0, -32768000.0, -32768000.0, -32768000.0]]


@given(batches(), batches(), batches())
def test_merging_is_associative_and_commutative(first: Batch, second: Batch, third: Batch) -> None:
    left, right = sums_of(first), sums_of(second)
    left.merge(sums_of(second))
    left.merge(sums_of(third))
    right.merge(sums_of(third))
    right.merge(sums_of(first))
    assert left.digest() == right.digest() == sums_of(first, second, third).digest()


@given(batches(), batches())
def test_adding_then_subtracting_is_the_identity(kept: Batch, erased: Batch) -> None:
    sums = sums_of(kept, erased)
    sums.subtract(sums_of(erased))
    assert sums.digest() == sums_of(kept).digest()
    assert set(sums.labels) == {*kept[1], *erased[1]}  # labels are append-only


@given(batches(), batches())
def test_subtracting_what_was_never_added_is_refused_or_leaves_possible_sums(mine: Batch, other: Batch) -> None:
    sums = sums_of(mine)
    before = sums.copy()
    try:
        sums.subtract(sums_of(other))
    except InvalidError:
        assert sums == before
    else:
        assert (sums.count_C >= 0).all()
        assert (sums.gram_dd.diagonal() >= 0).all()


@pytest.mark.parametrize(
    ("label", "value"), [("new", 1), ("a", 9)], ids=["of a class that is unknown", "with a negative diagonal"]
)
def test_an_impossible_subtraction_is_refused_and_changes_nothing(label: str, value: int) -> None:
    sums = sums_of((np.array([[1, 2, 3]] * 2, np.int16), ["a", "b"]))
    before = sums.to_bytes()
    with pytest.raises(InvalidError, match="cannot subtract"):
        sums.subtract(sums_of((np.full((1, 3), value, np.int16), [label])))
    with pytest.raises(InvalidError, match="cannot subtract"):
        sums.subtract(sums_of((np.array([[1, 2, 3]] * 2, np.int16), ["a", "a"])))
    assert sums.to_bytes() == before


@given(batches(), st.lists(st.sampled_from(["x", "y", "z"]), unique=True))
def test_saving_and_loading_is_bit_identical(batch: Batch, declared: list[str]) -> None:
    sums = sums_of(batch, labels=tuple(declared))
    loaded = Sums.from_bytes(sums.to_bytes())
    assert loaded == sums
    assert loaded.to_bytes() == sums.to_bytes()
    loaded.add(np.ones((1, 3), np.int16), ["later"])  # and it goes on learning
    assert loaded.labels[-1] == "later"


@pytest.mark.parametrize(("magnitude", "width"), [(2**31 - 1, 4), (2**39 - 1, 5), (2**47 - 1, 6), (2**53 - 1, 8)])
def test_sums_of_every_width_survive_saving_in_the_fewest_bytes(magnitude: int, width: int) -> None:
    gram = np.asfortranarray([[magnitude, 0.0], [-magnitude, magnitude]])
    data = dump(["a"], np.array([3]), np.array([[1.0, -1.0]]), gram)
    assert Sums.from_bytes(data).gram_dd.tolist() == [[magnitude, -magnitude], [-magnitude, magnitude]]
    assert f'"gram_bytes": {width}'.encode() in data


@given(st.data())
def test_a_flipped_bit_anywhere_is_data_loss(data: st.DataObject) -> None:
    saved = bytearray(sums_of((np.array([[5, -6, 7]], np.int16), ["a"])).to_bytes())
    saved[data.draw(st.integers(0, len(saved) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(DataLossError):
        Sums.from_bytes(bytes(saved))


@given(st.integers(0, 200))
def test_a_dump_cut_short_is_data_loss(length: int) -> None:
    saved = sums_of((np.array([[5, -6, 7]], np.int16), ["a"])).to_bytes()
    with pytest.raises(DataLossError):
        Sums.from_bytes(saved[: min(length, len(saved) - 1)])


def test_a_full_memory_refuses_before_a_sum_stops_being_exact() -> None:
    sums = sums_of((np.array([[-32768, 0, 32767]], np.int16), ["a"]))
    for _ in range(22):
        sums.merge(sums.copy())
    before = sums.to_bytes()
    with pytest.raises(PreconditionError) as caught:
        sums.merge(sums.copy())
    assert caught.value.reason == "MEMORY_FULL"
    assert sums.to_bytes() == before
    assert int(sums.gram_dd[0, 0]) == 2**30 * 2**22
    assert int(sums.gram_dd[2, 0]) == -32768 * 32767 * 2**22
    sums.add(np.array([[0, 1, 0]], np.int16), ["a"])  # there is room where nothing overflows
    assert sums.gram_dd[1, 1] == 1


def test_adding_to_a_full_memory_is_refused_and_changes_nothing() -> None:
    gram = np.zeros((3, 3), order="F")
    gram[0, 0] = 2**53 - 5.0
    sums = Sums.from_bytes(dump(["a"], np.array([9]), np.zeros((1, 3)), gram))
    sums.add(np.array([[2, 0, 0]], np.int16), ["a"])
    before = sums.to_bytes()
    with pytest.raises(PreconditionError, match="full"):
        sums.add(np.array([[1, 0, 0]], np.int16), ["new"])
    assert sums.to_bytes() == before


@pytest.mark.parametrize(
    ("features", "labels", "field"),
    [
        (np.zeros((2, 3), np.int16), ["a"], "labels"),
        (np.zeros((1, 3), np.int16), "a", "labels"),
        (np.zeros((1, 4), np.int16), ["a"], "features"),
        (np.zeros(3, np.int16), ["a"], "features"),
        (np.zeros((1, 3), np.int32), ["a"], "features"),
        (np.zeros((2, 3), np.int16), ["a", ""], "labels[1]"),
        (np.zeros((1, 3), np.int16), ["é" * 129], "labels[0]"),
        (np.zeros((1, 3), np.int16), ["\ud800"], "labels[0]"),
        (np.zeros((1, 3), np.int16), [7], "labels[0]"),
        (np.zeros((1, 3), np.int16), [["a"]], "labels[0]"),
    ],
)
def test_a_bad_batch_is_refused_by_field_and_changes_nothing(
    features: npt.NDArray[np.int16], labels: list[str], field: str
) -> None:
    sums = sums_of((np.ones((1, 3), np.int16), ["a"]))
    before = sums.to_bytes()
    with pytest.raises(InputError) as caught:
        sums.add(features, labels)
    assert caught.value.field == field
    assert sums.to_bytes() == before


def test_declared_classes_keep_their_places_and_leave_no_trace_in_the_digest() -> None:
    batch = np.array([[1, 2, 3]], np.int16), ["b"]
    declared = sums_of(batch, labels=("z", "b"))
    assert declared.labels == ["z", "b"]
    assert declared.count_C.tolist() == [0, 1]
    assert declared.digest() == sums_of(batch).digest()
    with pytest.raises(InputError):
        declared.declare(["new", "z"])
    with pytest.raises(InputError):
        declared.declare(["new", "new"])
    declared.declare(["new"])
    assert declared.labels == ["z", "b", "new"]


def test_an_empty_batch_changes_nothing() -> None:
    sums = Sums(3)
    sums.add(np.zeros((0, 3), np.int16), [])
    assert sums == Sums(3)


def test_two_thousand_classes_arriving_one_by_one_are_all_kept() -> None:
    sums = Sums(4)
    for index in range(2000):
        sums.add(np.full((1, 4), index, np.int16), [f"c{index}"])
    assert sums.sum_Cd[:, 0].tolist() == list(range(2000))
    assert (sums.count_C == 1).all()


def test_a_copy_does_not_see_what_is_learned_later_and_views_cannot_be_written() -> None:
    sums = sums_of((np.ones((1, 3), np.int16), ["a"]))
    twin = sums.copy()
    sums.add(np.ones((1, 3), np.int16), ["a"])
    assert twin.samples == 1
    assert twin != sums
    for view in (sums.count_C, sums.sum_Cd, sums.gram_lower_dd):
        with pytest.raises(ValueError, match="read-only"):
            view[0] = 1


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 40), st.sampled_from(["nothing", "sums", "digest", "copy"])), max_size=12))
def test_rows_that_wait_show_nowhere(pieces: list[tuple[int, str]]) -> None:
    random = np.random.default_rng(len(pieces))
    waiting, whole = Sums(3), Sums(3)
    for rows, read in pieces:
        quantised_Bd = random.integers(-2048, 2048, (rows, 3)).astype(np.int16)
        labels = [f"c{place}" for place in random.integers(0, 4, rows)]
        waiting.add(quantised_Bd, labels)
        whole.add(quantised_Bd.copy(), labels)
        quantised_Bd[:] = 0  # the caller's again
        assert whole.gram_lower_dd is not None  # read after every batch: nothing ever waits
        assert waiting.count_C.tolist() == whole.count_C.tolist()
        match read:
            case "sums":
                assert np.array_equal(waiting.sum_Cd, whole.sum_Cd)
            case "digest":
                assert waiting.digest() == whole.digest()
            case "copy":
                waiting = waiting.copy()
    assert waiting.to_bytes() == whole.to_bytes()


def test_rows_that_wait_count_towards_a_full_memory() -> None:
    row_Bd = np.full((1, 1), -32768, np.int16)  # its square is 2^30
    sums, part = Sums(1), Sums(1)
    part.add(row_Bd, ["a"])
    for doublings in range(23):  # all but the last of 2^23 such rows
        if doublings:
            part.merge(part.copy())
        sums.merge(part)
    small_Bd = np.full((1, 1), 32767, np.int16)
    sums.add(small_Bd, ["a"])
    for full_Bd in (row_Bd, small_Bd):
        with pytest.raises(PreconditionError) as caught:
            sums.add(full_Bd, ["a"])
        assert caught.value.reason == "MEMORY_FULL"
    sums.add(np.full((1, 1), 255, np.int16), ["a"])
    assert int(sums.gram_dd[0, 0]) == 2**53 - 2**30 + 32767**2 + 255**2


@given(st.lists(st.tuples(batches(), st.booleans()), max_size=12))
def test_setting_sums_down_between_batches_shows_nowhere(parts: list[tuple[Batch, bool]]) -> None:
    straight, rested = Sums(3), Sums(3)
    for (features, labels), rests in parts:
        straight.add(features, labels)
        rested.add(features, labels)
        if rests:
            data = rested.to_bytes()
            held_bytes = rested.held_bytes
            assert held_bytes >= 8 * (3 * 3 + 3 * len(rested.labels))
            assert rested.set_down(lambda data=data: Sums.from_bytes(data)) == held_bytes  # type: ignore[misc]
            assert rested.held_bytes == 0
            assert rested.count_C.tolist() == straight.count_C.tolist()
    assert rested == straight
    assert rested.digest() == straight.digest()


def test_what_is_recalled_must_be_what_was_set_down_and_it_can_be_tried_again() -> None:
    sums, other = sums_of((*stream()[:1], ["x"] * 400), dim=48), sums_of(stream(), dim=48)
    right, calls = sums.to_bytes(), list[str]()

    def gone() -> Sums:
        calls.append("read")
        raise DataLossError("the disk is gone")

    assert sums.set_down(gone) == (48 * 48 + 48) * 8
    for _ in range(2):
        with pytest.raises(DataLossError, match="the disk is gone"):
            sums.to_bytes()
    assert sums.set_down(lambda: other) == 0  # it is down already: how it is recalled stays
    assert calls == ["read"] * 2

    wrong = Sums.from_bytes(right)
    wrong.set_down(lambda: other)
    with pytest.raises(DataLossError, match="not the one that was set down"):
        wrong.digest()
    with pytest.raises(DataLossError):
        wrong.add(*stream(samples=1))
    assert wrong.samples == 400
