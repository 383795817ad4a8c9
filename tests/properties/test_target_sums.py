"""Sums with targets are integers as well: nothing about order, batching, sharding or saving may show in them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from everlearn.errors import DataLossError, InputError, InvalidError, PreconditionError
from everlearn.outputs import TARGET_LIMIT, Output, quantise_values
from everlearn.sums import Sums
from everlearn.target_sums import TargetSums

LABELS = ["a", "b", "ß", "日本", "e"]
OUTPUTS = (Output(name="celsius", low=-40.0, high=80.0), Output(name="bar", low=0.0, high=10.0))
Features = npt.NDArray[np.int16]
Batch = tuple[Features, list[frozenset[str]]]
Readings = tuple[Features, npt.NDArray[np.float64]]


@st.composite
def batches(draw: st.DrawFn, dim: int = 3) -> Batch:
    rows = draw(st.integers(0, 12))
    features = draw(hnp.arrays(np.int16, (rows, dim), elements=st.integers(-32768, 32767)))
    return features, draw(st.lists(st.frozensets(st.sampled_from(LABELS)), min_size=rows, max_size=rows))


@st.composite
def readings(draw: st.DrawFn, dim: int = 3) -> Readings:
    rows = draw(st.integers(0, 12))
    features = draw(hnp.arrays(np.int16, (rows, dim), elements=st.integers(-32768, 32767)))
    columns = [draw(hnp.arrays(np.float64, rows, elements=st.floats(each.low, each.high))) for each in OUTPUTS]
    return features, np.stack(columns, axis=1)


def of_sets(*parts: Batch, dim: int = 3, labels: tuple[str, ...] = ()) -> TargetSums:
    sums = TargetSums(dim, labels)
    for features, sets in parts:
        sums.add_sets(features, sets)
    return sums


def of_values(*parts: Readings, dim: int = 3) -> TargetSums:
    sums = TargetSums(dim, outputs=OUTPUTS)
    for features, values in parts:
        sums.add_values(features, values)
    return sums


def stream(samples: int = 400, dim: int = 24) -> tuple[Features, list[frozenset[str]], npt.NDArray[np.float64]]:
    rng = np.random.default_rng(5)
    features = rng.integers(-2047, 2048, (samples, dim)).astype(np.int16)
    sets = [frozenset(f"label {label}" for label in np.flatnonzero(row)) for row in rng.random((samples, 9)) < 0.2]
    return features, sets, rng.uniform([-40, 0], [80, 10], (samples, 2))


@pytest.mark.parametrize("task", ["multilabel", "regression"])
def test_thirty_orders_batchings_and_shardings_give_the_same_bits(task: str) -> None:
    features, sets, values = stream()

    def empty() -> TargetSums:
        return TargetSums(24, outputs=OUTPUTS if task == "regression" else ())

    def add(sums: TargetSums, rows: npt.NDArray[np.int64]) -> None:
        if task == "regression":
            sums.add_values(features[rows], values[rows])
        else:
            sums.add_sets(features[rows], [sets[row] for row in rows])

    straight = empty()
    add(straight, np.arange(len(features)))
    assert straight.samples == len(features)
    for seed in range(30):
        rng = np.random.default_rng(seed)
        order, start = rng.permutation(len(features)), 0
        shards = [empty() for _ in range(rng.integers(1, 5))]
        while start < len(order):
            rows = order[start : start + int(rng.integers(1, 120))]
            add(shards[rng.integers(len(shards))], rows)
            start += len(rows)
        total = empty()
        for index in rng.permutation(len(shards)):
            total.merge(shards[index])
        assert total.digest() == straight.digest()
        assert total.gram_lower_dd.tobytes() == straight.gram_lower_dd.tobytes()


@given(batches())
def test_sums_of_sets_are_those_of_python_integers_at_the_extremes_of_int16(batch: Batch) -> None:
    features, sets = batch
    sums = of_sets(batch)
    rows = features.tolist()
    assert sums.samples == len(rows)
    assert sums.total_d.tolist() == [sum(x[j] for x in rows) for j in range(3)]
    for column, label in enumerate(sums.labels):
        members = [x for x, labels in zip(rows, sets, strict=True) if label in labels]
        assert sums.sum_K[column] == sums.square_K[column] == len(members)
        assert sums.cross_Kd[column].tolist() == [sum(x[j] for x in members) for j in range(3)]


@given(readings())
def test_sums_of_values_are_those_of_python_integers(batch: Readings) -> None:
    features, values = batch
    sums = of_values(batch)
    targets = quantise_values(values, OUTPUTS).tolist()
    rows = features.tolist()
    for k in range(2):
        assert sums.sum_K[k] == sum(y[k] for y in targets)
        assert sums.square_K[k] == sum(y[k] ** 2 for y in targets)
        assert sums.cross_Kd[k].tolist() == [
            sum(y[k] * x[j] for x, y in zip(rows, targets, strict=True)) for j in range(3)
        ]


@given(batches(), batches(), batches())
def test_merging_sets_is_associative_and_commutative(first: Batch, second: Batch, third: Batch) -> None:
    left, right = of_sets(first), of_sets(second)
    left.merge(of_sets(second))
    left.merge(of_sets(third))
    right.merge(of_sets(third))
    right.merge(of_sets(first))
    assert left.digest() == right.digest() == of_sets(first, second, third).digest()


@given(batches(), batches())
def test_adding_then_subtracting_sets_is_the_identity(kept: Batch, erased: Batch) -> None:
    sums = of_sets(kept, erased)
    sums.subtract(of_sets(erased))
    assert sums.digest() == of_sets(kept).digest()
    assert set(sums.labels) == {label for labels in (*kept[1], *erased[1]) for label in labels}


@given(readings(), readings())
def test_adding_then_subtracting_values_is_the_identity(kept: Readings, erased: Readings) -> None:
    sums = of_values(kept, erased)
    sums.subtract(of_values(erased))
    assert sums.digest() == of_values(kept).digest()


@given(batches(), batches())
def test_subtracting_what_was_never_added_is_refused_or_leaves_possible_sums(mine: Batch, other: Batch) -> None:
    sums = of_sets(mine)
    before = sums.copy()
    try:
        sums.subtract(of_sets(other))
    except InvalidError:
        assert sums == before
    else:
        assert sums.samples >= 0
        assert (sums.sum_K >= 0).all()


def test_an_impossible_subtraction_is_refused_and_changes_nothing() -> None:
    sums = of_sets((np.array([[1, 2, 3], [4, 5, 6]], np.int16), [frozenset("a"), frozenset("b")]))
    before = sums.to_bytes()
    for label in ("c", "a"):
        with pytest.raises(InvalidError, match="cannot subtract"):
            sums.subtract(of_sets((np.full((1, 3), 9, np.int16), [frozenset(label)])))
    assert sums.to_bytes() == before


@given(batches(), st.lists(st.sampled_from(["x", "y", "z"]), unique=True))
def test_saving_and_loading_sets_is_bit_identical(batch: Batch, declared: list[str]) -> None:
    sums = of_sets(batch, labels=tuple(declared))
    loaded = TargetSums.from_bytes(sums.to_bytes())
    assert loaded == sums
    assert loaded.to_bytes() == sums.to_bytes()
    assert loaded.task == "multilabel"
    loaded.add_sets(np.ones((1, 3), np.int16), [["later"]])  # and it goes on learning
    assert loaded.labels[-1] == "later"


@given(readings())
def test_saving_and_loading_values_is_bit_identical(batch: Readings) -> None:
    sums = of_values(batch)
    loaded = TargetSums.from_bytes(sums.to_bytes())
    assert loaded == sums
    assert loaded.outputs == OUTPUTS
    assert loaded.task == "regression"


@given(st.data())
def test_a_flipped_bit_anywhere_is_data_loss(data: st.DataObject) -> None:
    saved = bytearray(of_sets((np.array([[5, -6, 7]], np.int16), [frozenset("a")])).to_bytes())
    saved[data.draw(st.integers(0, len(saved) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(DataLossError):
        TargetSums.from_bytes(bytes(saved))


def test_memories_of_single_labels_are_not_read_as_targets_nor_the_other_way_round() -> None:
    with pytest.raises(DataLossError):
        TargetSums.from_bytes(Sums(3, ["a"]).to_bytes())
    with pytest.raises(DataLossError):
        Sums.from_bytes(TargetSums(3, ["a"]).to_bytes())


def test_a_label_that_comes_late_was_absent_before() -> None:
    late = of_sets(
        (np.array([[1, 2, 3]], np.int16), [frozenset("a")]), (np.array([[4, 5, 6]], np.int16), [frozenset("b")])
    )
    early = of_sets(
        (np.array([[4, 5, 6], [1, 2, 3]], np.int16), [frozenset("b"), frozenset("a")]), labels=("b", "a", "never")
    )
    assert early.labels == ["b", "a", "never"]
    assert late.digest() == early.digest()


def test_values_lie_on_a_grid_of_their_declared_range_and_nothing_beyond_it_is_taken() -> None:
    step = 120 / (2 * TARGET_LIMIT)
    assert quantise_values(np.array([[-40.0, 10.0], [20.0, 5.0]]), OUTPUTS).tolist() == [
        [-TARGET_LIMIT, TARGET_LIMIT],
        [0, 0],
    ]
    values = np.random.default_rng(0).uniform(-40, 80, 1000)
    back = 20 + quantise_values(np.stack([values, values * 0], axis=1), OUTPUTS)[:, 0] * step
    assert np.abs(back - values).max() <= step / 2
    for bad in (80.1, -41.0, np.nan, np.inf):
        with pytest.raises(InputError, match=r"celsius is .*-40 to 80") as caught:
            quantise_values(np.array([[0.0, 0.0], [bad, 0.0]]), OUTPUTS)
        assert caught.value.field == "values[1][0]"


def test_the_ends_of_a_range_are_taken_in_float32_too() -> None:
    output = Output(name="share", low=0.1, high=0.7)
    ends = np.array([[0.1], [0.7]], np.float32)
    assert quantise_values(ends, [output]).ravel().tolist() == [-TARGET_LIMIT, TARGET_LIMIT]


def _sets(features: Features, sets: object) -> Callable[[TargetSums], None]:
    return lambda sums: sums.add_sets(features, sets)  # type: ignore[arg-type]  # wrong on purpose


ONE = np.ones((1, 3), np.int16)


@pytest.mark.parametrize(
    ("add", "field"),
    [
        (_sets(ONE, []), "labels"),
        (_sets(ONE, ["a"]), "labels[0]"),
        (_sets(ONE, [["a", "a"]]), "labels[0]"),
        (_sets(ONE, [["a", ""]]), "labels[0][1]"),
        (_sets(ONE, [[7]]), "labels[0][0]"),
        (_sets(np.ones((1, 4), np.int16), [["a"]]), "features"),
        (_sets(ONE.astype(np.int32), [["a"]]), "features"),
        (lambda sums: sums.add_values(ONE, np.ones((1, 1))), "labels"),
    ],
)
def test_a_bad_batch_is_refused_by_field_and_changes_nothing(add: Callable[[TargetSums], None], field: str) -> None:
    sums = of_sets((ONE, [frozenset("a")]))
    before = sums.to_bytes()
    with pytest.raises(InputError) as caught:
        add(sums)
    assert caught.value.field == field
    assert sums.to_bytes() == before


def test_a_regression_takes_values_alone_and_only_as_many_as_it_has_outputs() -> None:
    sums = of_values()
    for add in (lambda: sums.add_sets(ONE, [["a"]]), lambda: sums.add_values(ONE, np.ones((1, 3)))):
        with pytest.raises(InputError) as caught:
            add()
        assert caught.value.field == "values"
    with pytest.raises(InvalidError, match="no labels"):
        sums.declare(["a"])
    with pytest.raises(InvalidError, match="other outputs"):
        sums.merge(TargetSums(3, outputs=OUTPUTS[:1]))


@pytest.mark.parametrize("task", ["multilabel", "regression"])
def test_a_full_memory_refuses_before_a_sum_stops_being_exact(task: str) -> None:
    full = np.array([[-32768, 0, 32767]], np.int16)
    sums = of_values((full, np.array([[80.0, 0.0]]))) if task == "regression" else of_sets((full, [frozenset("a")]))
    for _ in range(22):
        sums.merge(sums.copy())
    before = sums.to_bytes()
    with pytest.raises(PreconditionError) as caught:
        sums.merge(sums.copy())
    assert caught.value.reason == "MEMORY_FULL"
    assert sums.to_bytes() == before
    assert int(sums.cross_Kd[0, 0]) == -32768 * int(sums.sum_K[0])


def test_a_copy_does_not_see_what_is_learned_later_and_views_cannot_be_written() -> None:
    sums = of_sets((ONE, [frozenset("a")]))
    twin = sums.copy()
    sums.add_sets(ONE, [["a", "b"]])
    assert (twin.samples, twin.labels) == (1, ["a"])
    for view in (sums.sum_K, sums.square_K, sums.cross_Kd, sums.total_d):
        with pytest.raises(ValueError, match="read-only"):
            view[0] = 1


def test_labels_and_outputs_together_are_refused() -> None:
    with pytest.raises(InvalidError, match="leave the labels out"):
        TargetSums(3, ["a"], outputs=OUTPUTS)
