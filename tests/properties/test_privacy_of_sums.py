"""One sample moves a release by at most one noise multiplier's worth, and the noise is what was said."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from everlearn.errors import DataLossError, InputError
from everlearn.privacy import mechanism
from everlearn.privacy.mechanism import SumsMechanism, normals
from everlearn.privacy.noised_sums import NoisedSums
from everlearn.values import FeatureScale

STEPS = st.lists(st.sampled_from([2.0**-9, 2.0**-6, 0.5, 4.0]), min_size=1, max_size=6)
EVEN = FeatureScale(step_d=np.full(24, 2.0**-7, np.float32))
LABELS = ["cat", "dog", "newt"]


def scale_of(steps: list[float]) -> FeatureScale:
    return FeatureScale(step_d=np.array(steps, np.float32))


@settings(deadline=None, max_examples=200)
@given(st.data(), STEPS, st.floats(0.2, 20))
def test_no_sample_moves_a_release_by_more_than_the_noise_allows(data: Any, steps: list[float], noise: float) -> None:
    scale = scale_of(steps)
    vector_1d = data.draw(hnp.arrays(np.int16, (1, len(steps)), elements=st.integers(-scale.limit, scale.limit)))
    sums = SumsMechanism(scale=scale)
    bounded_1d = sums.bounded(vector_1d).astype(np.float64)
    count_C, sum_Cd, lower_dd = sums.stds(noise, 2)
    rows, columns = np.tril_indices(len(steps))
    gram_dd = bounded_1d.T @ bounded_1d
    moved = (
        (1 / count_C[0]) ** 2
        + np.sum((bounded_1d / sum_Cd[0]) ** 2)
        + np.sum((gram_dd[rows, columns] / lower_dd[rows, columns]) ** 2)
    )
    assert moved <= (1 / noise) ** 2 * (1 + 1e-9)


def test_a_typical_sample_uses_the_whole_of_what_it_may_move() -> None:
    vector_1d = np.random.default_rng(0).integers(-300, 300, (1, 24)).astype(np.int16)
    sums = SumsMechanism(scale=EVEN)
    length = float(np.linalg.norm(sums.bounded(vector_1d) * EVEN.step_d))
    assert 0.99 * sums.length < length <= sums.length


def test_the_systems_normals_are_normal() -> None:
    found = normals(200_001)
    assert found.shape == (200_001,)
    assert stats.kstest(found, "norm").pvalue > 1e-4
    assert abs(np.corrcoef(found[:100_000], found[100_000:200_000])[0, 1]) < 0.02


def noises_of(noise: float, releases: int) -> npt.NDArray[np.float64]:
    """What `release` added, in units of its standard deviation: one row a release."""
    found = []
    for _ in range(releases):
        sums = NoisedSums(EVEN, LABELS)
        sums.add(np.zeros((1, 24), np.int16), ["cat"])
        assert sums.release(noise=noise)
        count_C, sum_Cd, lower_dd = SumsMechanism(scale=EVEN).stds(noise, 3)
        at = np.tril_indices(24)
        parts = [
            (sums.count_C - [1, 0, 0]) / count_C,
            (sums.sum_Cd / sum_Cd).ravel(),
            (sums.lower_dd[at] / lower_dd[at]),
        ]
        found.append(np.concatenate(parts))
    return np.array(found)


def is_of_unit_variance(standard: npt.NDArray[np.float64]) -> bool:
    """A chi-square test on the sum of squares, two-sided."""
    tail = stats.chi2.cdf(float(np.sum(standard**2)), standard.size)
    return bool(1e-5 < tail < 1 - 1e-5)


def test_the_noise_of_a_release_has_its_variance_in_every_part() -> None:
    found = noises_of(4.0, 60)
    assert is_of_unit_variance(found[:, 3:75])
    assert is_of_unit_variance(found[:, 75:])
    # Counts are few steps wide: rounding adds a twelfth of a step squared.
    assert is_of_unit_variance(found[:, :3] / np.sqrt(1 + 1 / 12 / (4.0**2 / mechanism.SHARES[0])))


def test_the_test_of_the_noise_notices_a_tenth_too_little_of_it() -> None:
    assert not is_of_unit_variance(noises_of(3.6, 60) * 3.6 / 4.0)


def test_no_two_releases_share_their_noise() -> None:
    first, second = noises_of(1.0, 2)
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.25
    assert not np.array_equal(first, second)


def test_nothing_that_waits_can_be_read() -> None:
    sums = NoisedSums(EVEN, LABELS)
    before = sums.to_bytes()
    sums.add(np.full((5, 24), 900, np.int16), ["cat"] * 5)
    assert sums.to_bytes() == before
    assert sums.samples == 0
    assert not sums.count_C.any()
    assert sums.copy().waiting == 0


def test_what_waits_is_released_once() -> None:
    sums = NoisedSums(EVEN, LABELS)
    sums.add(np.full((5, 24), 900, np.int16), ["cat"] * 5)
    assert sums.release(noise=1.0)
    once = sums.to_bytes()
    assert not sums.release(noise=1.0)
    assert sums.to_bytes() == once
    assert (sums.samples, sums.releases, sums.variance) == (5, 1, 1.0)


def test_a_label_that_is_not_declared_is_refused_and_nothing_is_taken() -> None:
    sums = NoisedSums(EVEN, LABELS)
    with pytest.raises(InputError, match="not declared"):
        sums.add(np.zeros((2, 24), np.int16), ["cat", "unicorn"])
    assert sums.waiting == 0


def test_classes_that_are_declared_later_are_hidden_like_the_others() -> None:
    sums = NoisedSums(EVEN, ["cat"])
    sums.add(np.zeros((1, 24), np.int16), ["cat"])
    sums.declare(["dog"])
    sums.release(noise=1.0)
    assert sums.sum_Cd[1].any()


def test_bytes_come_back_and_damaged_or_foreign_ones_do_not() -> None:
    sums = NoisedSums(EVEN, LABELS)
    sums.add(np.full((5, 24), -900, np.int16), ["newt"] * 5)
    sums.release(noise=2.0)
    data = sums.to_bytes()
    again = NoisedSums.from_bytes(data, EVEN)
    assert again.to_bytes() == data
    assert np.array_equal(again.lower_dd, sums.lower_dd)
    for wrong in (data[:-1], data[:40] + b"x" + data[41:], b"EVLSUMS1" + data[8:]):
        with pytest.raises(DataLossError):
            NoisedSums.from_bytes(wrong, EVEN)
    with pytest.raises(DataLossError, match="feature scale"):
        NoisedSums.from_bytes(data, scale_of([1.0] * 24))
