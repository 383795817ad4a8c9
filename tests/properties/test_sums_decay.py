"""A forgetting factor: what is older weighs less, and sums that have decayed say that they are no longer exact."""

from __future__ import annotations

import numpy as np
import pytest
from tests.properties.test_sums import stream, sums_of

from everlearn._sums_format import dump
from everlearn.errors import DataLossError, InvalidError, PreconditionError
from everlearn.sums import Sums


def test_a_forgetting_factor_weighs_each_batch_by_how_many_came_after_it() -> None:
    features, labels = stream(samples=600)
    sums, keep = Sums(48), 0.75
    wanted_gram, wanted_sum, wanted_count = np.zeros((48, 48)), np.zeros((7, 48)), np.zeros(7)
    for start, stop in ((0, 300), (300, 301), (301, 600)):  # of more rows than a block, and of one
        rows = features[start:stop].astype(np.float64)
        sums.add(features[start:stop], labels[start:stop], keep=keep)
        onehot = np.array([[label == name for name in labels[start:stop]] for label in sorted(set(labels))], float)
        wanted_gram = keep * wanted_gram + rows.T @ rows
        wanted_sum = keep * wanted_sum + onehot @ rows
        wanted_count = keep * wanted_count + onehot.sum(axis=1)
    order = np.argsort(sums.labels)
    assert not sums.is_exact
    np.testing.assert_allclose(sums.gram_dd, wanted_gram, rtol=1e-12, atol=1e-6)
    np.testing.assert_allclose(sums.sum_Cd[order], wanted_sum, rtol=1e-12, atol=1e-6)
    np.testing.assert_allclose(sums.count_C[order], wanted_count, rtol=1e-12)


def test_decayed_sums_survive_saving_bit_for_bit_and_go_on_decaying() -> None:
    features, labels = stream(samples=90)
    sums = Sums(48)
    for start in range(0, 90, 30):
        sums.add(features[start : start + 30], labels[start : start + 30], keep=0.9)
    loaded = Sums.from_bytes(sums.to_bytes())
    assert loaded == sums
    for each in (sums, loaded):
        each.add(features[:5], ["new", *labels[:4]], keep=0.9)
    assert loaded.to_bytes() == sums.to_bytes()
    assert loaded.digest() == sums.digest()
    damaged = bytearray(sums.to_bytes())
    damaged[len(damaged) // 2] ^= 1
    with pytest.raises(DataLossError):
        Sums.from_bytes(bytes(damaged))


def test_nothing_decays_through_an_empty_batch_or_a_factor_of_one() -> None:
    exact, batch = sums_of(stream(), dim=48), stream(samples=40)
    twin = exact.copy()
    exact.add(np.zeros((0, 48), np.int16), [], keep=0.5)
    assert exact == twin
    assert exact.is_exact
    exact.add(*batch, keep=1.0)
    twin.add(*batch)
    assert exact.to_bytes() == twin.to_bytes()


def test_decayed_sums_are_never_merged_subtracted_or_mistaken_for_exact_ones() -> None:
    sums, exact = sums_of(stream(), dim=48), sums_of(stream(), dim=48)
    sums.add(*stream(samples=1), keep=0.5)
    before = sums.to_bytes()
    for act in (sums.merge, sums.subtract):
        with pytest.raises(PreconditionError) as caught:
            act(exact)
        assert caught.value.reason == "INEXACT_SUMS"
    with pytest.raises(PreconditionError):
        exact.merge(sums)
    assert sums.to_bytes() == before
    assert sums != exact


def test_a_class_that_has_decayed_away_is_without_samples_but_keeps_its_place() -> None:
    sums = sums_of((np.full((1, 3), 9, np.int16), ["old"]))
    for _ in range(30):
        sums.add(np.ones((1, 3), np.int16), ["new"], keep=0.5)
    assert sums.labels == ["old", "new"]
    assert sums.count_C[0] == 0
    assert not sums.sum_Cd[0].any()
    assert sums.count_C[1] == pytest.approx(2.0)


@pytest.mark.parametrize("keep", [0.0, -0.5, 1.5, float("nan")])
def test_an_impossible_forgetting_factor_is_refused_and_changes_nothing(keep: float) -> None:
    sums = sums_of((np.ones((1, 3), np.int16), ["a"]))
    before = sums.to_bytes()
    with pytest.raises(InvalidError) as caught:
        sums.add(np.ones((1, 3), np.int16), ["a"], keep=keep)
    assert caught.value.field == "keep"
    assert sums.to_bytes() == before


def test_decay_is_never_full_where_exact_sums_would_be() -> None:
    gram = np.zeros((3, 3), order="F")
    gram[0, 0] = 2**53 - 5.0
    sums = Sums.from_bytes(dump(["a"], np.array([9]), np.zeros((1, 3)), gram))
    sums.add(np.array([[32767, 0, 0]], np.int16), ["a"], keep=0.99)
    assert sums.gram_dd[0, 0] == pytest.approx(0.99 * 2**53)
