"""The sketch of ranges: exact counts that add up in any order, outliers left out, and nothing of a single image."""

from __future__ import annotations

import numpy as np
import pytest

from everlearn.errors import DataLossError, InputError
from everlearn.export.ranges import BINS_AN_OCTAVE, OUTLIERS, Extremes, RangeSketch

TENSORS = ("first", "second", "always zero")


def extremes(count: int, seed: int = 0) -> Extremes:
    values = np.random.default_rng(seed).normal(0, [[3.0], [0.02], [0.0]], (count, 3, 2))
    values[:, :, 0] = -np.abs(values[:, :, 0])
    values[:, 1, 0] = 0.5  # the smallest value of a tensor may be above 0
    values[:, :, 1] = np.abs(values[:, :, 1])
    return values.astype(np.float32)


def test_ranges_hold_all_that_was_seen_and_little_more() -> None:
    sketch, seen = RangeSketch(TENSORS), extremes(200)
    sketch.add(seen)
    ranges, width = sketch.ranges(), 2 ** (1 / BINS_AN_OCTAVE)
    for number, name in enumerate(TENSORS[:2]):
        low, high = ranges[name]
        highest, lowest = float(seen[:, number, 1].max()), min(0.0, float(seen[:, number, 0].min()))
        assert highest <= high <= highest * width * 1.0001
        assert lowest * width * 1.0001 <= low <= lowest
    assert ranges["always zero"] == (0.0, 1.0)


def test_any_order_and_any_batches_give_the_same_bytes() -> None:
    seen, whole, parts = extremes(100), RangeSketch(TENSORS), RangeSketch(TENSORS)
    whole.add(seen)
    for row in np.random.default_rng(1).permutation(100):
        parts.add(seen[row : row + 1])
    assert whole.to_bytes() == parts.to_bytes()
    assert RangeSketch.from_bytes(whole.to_bytes()).ranges() == whole.ranges()


def test_one_image_in_a_thousand_does_not_widen_a_range_and_one_in_a_hundred_does() -> None:
    for count, widened in ((2_000, False), (100, True)):
        sketch = RangeSketch(TENSORS)
        sketch.add(extremes(count))
        before = sketch.ranges()["first"][1]
        outlier = extremes(1)
        outlier[0, 0, 1] = 1e5
        sketch.add(outlier)
        assert (sketch.ranges()["first"][1] > 10 * before) == widened
    assert 1 / 2_000 < OUTLIERS < 1 / 100


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_what_is_no_number_is_refused_and_changes_nothing(wrong: float) -> None:
    sketch, seen = RangeSketch(TENSORS), extremes(3)
    sketch.add(seen)
    before = sketch.to_bytes()
    seen[1, 1, 1] = wrong
    with pytest.raises(InputError):
        sketch.add(seen)
    assert sketch.to_bytes() == before
    with pytest.raises(InputError):
        sketch.add(extremes(2)[:, :2])


def test_without_an_image_there_is_no_range() -> None:
    with pytest.raises(InputError, match="no image"):
        RangeSketch(TENSORS).ranges()


def test_damaged_bytes_are_refused() -> None:
    sketch = RangeSketch(TENSORS)
    sketch.add(extremes(5))
    data = sketch.to_bytes()
    more = data.replace(b'"samples": 5', b'"samples": 6')
    for damaged in (b"", data[:10], data[:-3], more, b"\x00" * 50):
        with pytest.raises(DataLossError):
            RangeSketch.from_bytes(damaged)
