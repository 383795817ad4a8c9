"""Mathematics of the memories: uniform choices, bounded rounding, Gaussian draws, exact deletion of a class."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats
from tests.properties.test_sums import Batch, batches

from everlearn.memories import _choice
from everlearn.memories._codes import Codec, Precision
from everlearn.memories._gaussian import noise_factor
from everlearn.memories.latents import Latents
from everlearn.memories.per_class_statistics import PerClassStatistics
from everlearn.memories.statistics import Statistics
from everlearn.spec.model import Memory as Declared
from everlearn.sums import Sums

# -- shares and the reservoir -----------------------------------------------------------------------------------


def level_by_level(wanted: Sequence[int], total: int) -> list[int]:
    share = [0] * len(wanted)
    while total and share != list(wanted):
        for index in range(len(wanted)):
            if share[index] < wanted[index] and total:
                share[index], total = share[index] + 1, total - 1
    return share


@given(st.lists(st.integers(0, 12), min_size=1, max_size=9), st.integers(1, 60))
def test_shares_are_those_of_handing_out_one_by_one(wanted: list[int], total: int) -> None:
    assert _choice.even_shares(np.array(wanted), total).tolist() == level_by_level(wanted, total)


@given(st.lists(st.integers(0, 12), min_size=2, max_size=9), st.integers(1, 60), st.integers(0, 8))
def test_a_class_that_wants_more_never_gives_another_more(wanted: list[int], total: int, which: int) -> None:
    more = list(wanted)
    more[which % len(more)] += 1
    before, after = (_choice.even_shares(np.array(each), total) for each in (wanted, more))
    assert (np.delete(after - before, which % len(more)) <= 0).all()


def kept_of_first_class(trial: int, *, newest_only: bool = False) -> npt.NDArray[np.int64]:
    """A stream in blocks: 120 rows of one class, then classes that take its share away: who is kept of the 120."""
    memory = Latents.create(1, [], Declared(kind="latents", capacity=60, precision="fp16"))
    memory._arrivals.count = 1000 * trial  # other random numbers in each trial
    for start in range(0, 120, 24):
        memory.integrate(np.arange(start, start + 24, dtype=np.int16)[:, None], ["first"] * 24)
    for label in ("second", "third", "fourth"):
        memory.integrate(np.full((50, 1), 999, np.int16), [label] * 50)
    kept = np.sort(memory._rows.decode(memory._rows.class_N == 0)[:, 0]).astype(np.int64)
    assert len(kept) == 15
    return np.arange(105, 120) if newest_only else kept


@pytest.mark.parametrize("newest_only", [False, True])
def test_each_row_of_a_class_is_kept_with_the_same_probability(newest_only: bool) -> None:
    trials = 600
    counts = np.zeros(120)
    for trial in range(trials):
        counts[kept_of_first_class(trial, newest_only=newest_only)] += 1
    # Without replacement, so a cell's variance is smaller than Poisson's: the statistic is scaled up accordingly.
    chi_square = float(((counts - counts.mean()) ** 2).sum() / counts.mean()) / (1 - 15 / 120) * 119 / 120
    assert (stats.chi2.sf(chi_square, 119) < 1e-6) == newest_only
    assert (chi_square > stats.chi2.ppf(1e-3, 119)) or newest_only  # nor more even than chance


def test_random_numbers_of_arrivals_are_those_of_splitmix64() -> None:
    # Seed 0; the first outputs as in the reference implementation (Vigna, splitmix64.c).
    numbers = [int(number) for number in _choice.priority(np.arange(3))]
    assert numbers == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


def test_a_draw_takes_every_place_of_a_class_with_the_same_probability() -> None:
    random = np.random.default_rng(1)
    size_C = np.array([7, 0, 3])
    counts = np.zeros((3, 7))
    for _ in range(4000):
        class_R, place_R = _choice.balanced(size_C, 5, random)
        np.add.at(counts, (class_R, place_R), 1)
    assert counts[1].sum() == 0
    assert counts[0].sum() == pytest.approx(10_000, rel=0.02)
    assert stats.chisquare(counts[0]).pvalue > 1e-3
    assert stats.chisquare(counts[2, :3]).pvalue > 1e-3


# -- codes ------------------------------------------------------------------------------------------------------


@given(st.lists(hnp.arrays(np.int16, (3, 2), elements=st.integers(-32767, 32767)), min_size=1, max_size=8))
def test_int8_is_off_by_a_step_at_most_however_often_the_range_grew(
    parts: list[npt.NDArray[np.int16]],
) -> None:
    codec = Codec("int8", 2)
    kept = np.zeros((0, 2), np.int8)
    for part in parts:
        codec.widen(part, kept)
        kept = np.concatenate([kept, codec.encode(part)])
    rows = np.concatenate(parts).astype(np.int64)
    step_d = 2.0 ** codec.shift_d.astype(np.int64)
    assert (np.abs(codec.decode(kept) - rows) <= step_d).all()
    largest_d = np.abs(rows).max(axis=0)
    assert (largest_d < 128 * step_d).all()
    assert ((step_d == 1) | (largest_d >= 64 * step_d)).all()  # no coarser than it must be


@pytest.mark.parametrize(("precision", "bound"), [("fp16", 0), ("int8", 8)])
def test_a_twelve_bit_feature_comes_back_as_it_was_or_within_half_a_step(precision: Precision, bound: int) -> None:
    rows = np.arange(-2047, 2048, dtype=np.int16)[:, None]
    codec = Codec(precision, 1)
    error = np.abs(codec.decode(codec.encode(rows)).astype(int) - rows)
    assert error[8:-8].max() == bound
    assert error.max() < max(2 * bound, 1)  # the very end of the range saturates


def test_the_ends_of_int16_do_not_wrap_around() -> None:
    rows = np.array([[-32768, 32767]], np.int16)
    for precision, off in (("int8", 256), ("fp16", 16)):
        codec = Codec(precision, 2)
        assert np.abs(codec.decode(codec.encode(rows)).astype(int) - rows).max() <= off


# -- pseudo-replay ----------------------------------------------------------------------------------------------


def gaussian_classes(rows: int = 1500) -> tuple[npt.NDArray[np.int16], list[str]]:
    random = np.random.default_rng(11)
    mixing = random.normal(size=(6, 6)) * 60
    mean = random.uniform(-900, 900, (3, 6))
    classes = random.integers(0, 3, rows)
    features = random.normal(size=(rows, 6)) @ mixing + mean[classes]
    return np.clip(np.rint(features), -2047, 2047).astype(np.int16), [f"c{index}" for index in classes]


def test_rows_that_never_were_have_the_means_and_the_covariance_of_the_sums() -> None:
    features, labels = gaussian_classes()
    memory = Statistics.create(6, ["c0", "c1", "c2"])
    memory.integrate(features, labels)
    count = 30_000
    drawn = memory.draw(count, np.random.default_rng(0))
    factor = noise_factor(memory.sums)
    assert factor is not None
    covariance = factor.astype(np.float64) @ factor.T
    names = np.array(labels)
    within = np.concatenate([features[names == f"c{c}"] - features[names == f"c{c}"].mean(axis=0) for c in range(3)])
    assert np.abs(covariance / (within.T @ within / (1500 - 3)) - 1).max() < 0.03  # many samples: hardly shrunk
    deviation = np.sqrt(covariance.diagonal())
    centred = np.zeros((count, 6))
    for index in range(3):
        chosen = drawn.class_R == index
        assert chosen.sum() == count // 3
        mean = features[names == f"c{index}"].mean(axis=0)
        error = drawn.quantised_Rd[chosen].mean(axis=0) - mean
        assert (np.abs(error) < 4.5 * deviation / np.sqrt(count / 3)).all()
        centred[chosen] = drawn.quantised_Rd[chosen] - mean
    scale = np.outer(deviation, deviation)
    assert np.abs((centred.T @ centred / count - covariance) / scale).max() < 4.5 * np.sqrt(2 / count)
    sphere = centred @ np.linalg.inv(factor.astype(np.float64)).T
    assert stats.kstest(sphere[:5000].ravel(), "norm").pvalue > 1e-3


def test_classes_of_one_sample_each_are_drawn_as_they_were() -> None:
    memory = Statistics.create(3, [])
    memory.integrate(np.array([[5, -6, 7], [2000, 0, -2000]], np.int16), ["a", "b"])
    drawn = memory.draw(6, np.random.default_rng(0))
    assert {tuple(row) for row in drawn.quantised_Rd.tolist()} == {(5, -6, 7), (2000, 0, -2000)}


def test_fewer_samples_than_features_still_make_a_covariance() -> None:
    random = np.random.default_rng(2)
    memory = Statistics.create(64, [])
    memory.integrate(random.integers(-900, 900, (10, 64)).astype(np.int16), ["a", "b"] * 5)
    drawn = memory.draw(200, random)
    assert np.abs(drawn.quantised_Rd).max() <= 2047
    assert drawn.quantised_Rd.std(axis=0).min() > 50


def test_new_means_show_in_the_next_draw_and_a_new_covariance_after_a_quarter_more_samples() -> None:
    features, labels = gaussian_classes()
    memory = Statistics.create(6, ["c0", "c1", "c2"])
    memory.integrate(features, labels)
    memory.draw(1, np.random.default_rng(0))
    fitted = memory._replay._factor_dd
    memory.integrate(np.full((100, 6), 2000, np.int16), ["c0"] * 100)
    drawn = memory.draw(3000, np.random.default_rng(0))
    assert memory._replay._factor_dd is fitted
    mean = memory.sums.sum_Cd[0] / memory.sums.count_C[0]
    np.testing.assert_allclose(drawn.quantised_Rd[drawn.class_R == 0].mean(axis=0), mean, atol=20)
    memory.integrate(np.full((400, 6), 2000, np.int16), ["c0"] * 400)
    memory.draw(1, np.random.default_rng(0))
    assert memory._replay._factor_dd is not fitted


# -- exact and inexact sums -------------------------------------------------------------------------------------


@given(st.lists(batches(), min_size=1, max_size=4), st.sampled_from(["a", "b", "e"]))
def test_a_deleted_class_leaves_bit_for_bit_a_memory_that_never_met_it(parts: list[Batch], label: str) -> None:
    memory = PerClassStatistics.create(3, ["a", "b", "e"])
    for part in parts:
        memory.integrate(*part)
        memory.draw(2, np.random.default_rng(1))
    memory.forget_class(label)
    never = PerClassStatistics.create(3, memory.labels)
    for features, labels in parts:
        others = [row for row, name in enumerate(labels) if name != label]
        never.integrate(features[others], [labels[row] for row in others])
    assert memory.to_bytes() == never.to_bytes()
    assert memory.sums == never.sums
    drawn, wanted = (each.draw(9, np.random.default_rng(0)) for each in (memory, never))
    assert np.array_equal(drawn.quantised_Rd, wanted.quantised_Rd)


def test_control_a_class_deleted_but_for_one_sample_is_seen() -> None:
    memory, never = (PerClassStatistics.create(3, ["a", "b"]) for _ in range(2))
    memory.integrate(np.ones((2, 3), np.int16), ["a", "b"])
    memory.forget_class("b")
    memory.integrate(np.zeros((1, 3), np.int16), ["b"])
    never.integrate(np.ones((1, 3), np.int16), ["a"])
    assert memory.to_bytes() != never.to_bytes()


@given(batches(), batches())
def test_per_class_sums_add_up_to_those_of_the_plain_memory(first: Batch, second: Batch) -> None:
    split, plain = PerClassStatistics.create(3, []), Sums(3)
    for part in (first, second):
        split.integrate(*part)
        plain.add(*part)
    total = Sums(3, split.labels)
    for label in split.labels:
        total.merge(split.sums_of(label))
    assert split.sums == plain == total
    assert PerClassStatistics.from_bytes(split.to_bytes()).sums == plain


def test_without_decay_the_bytes_are_those_of_the_sums_and_memories_from_before_are_read() -> None:
    features, labels = gaussian_classes()
    memory, sums = Statistics.create(6, []), Sums(6)
    memory.integrate(features, labels)
    sums.add(features, labels)
    assert memory.to_bytes() == sums.to_bytes()
    assert Statistics.from_bytes(sums.to_bytes()).sums == sums


def test_decay_makes_a_memory_inexact_for_good_and_still_counts_what_it_saw() -> None:
    features, labels = gaussian_classes(90)
    memory, plain = (Statistics.create(6, ["c0"], Declared(kind="statistics", decay=decay)) for decay in (0.9, 1.0))
    assert memory.is_exact
    for start in range(0, 90, 30):
        for each in (memory, plain):
            each.integrate(features[start : start + 30], labels[start : start + 30])
    assert not memory.is_exact
    assert plain.is_exact
    assert memory.seen_C.tolist() == plain.seen_C.tolist()
    assert memory.sums.samples == int(30 * (0.81 + 0.9 + 1))
    loaded = Statistics.from_bytes(memory.to_bytes())
    for each in (memory, loaded):
        each.configure(Declared(kind="statistics", decay=1.0))
        each.integrate(features[:30], [*labels[:29], "new"])
    assert not memory.is_exact
    assert memory.seen == 120
    assert loaded.to_bytes() == memory.to_bytes()
    memory.declare(["later"])
    assert memory.seen_C.tolist()[-2:] == [1, 0]


def test_decay_follows_a_class_whose_mean_has_moved() -> None:
    random = np.random.default_rng(3)
    error = {}
    for decay in (1.0, 0.9):
        memory = Statistics.create(4, [], Declared(kind="statistics", decay=decay))
        for step in range(100):
            centre = 0 if step < 60 else 800
            memory.integrate((centre + random.normal(0, 30, (8, 4))).astype(np.int16), ["a"] * 8)
        error[decay] = abs(float(memory.sums.sum_Cd[0, 0] / memory.sums.count_C[0]) - 800)
    assert error[0.9] < 30 < 400 < error[1.0]
