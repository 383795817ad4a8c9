"""Moving sums to another backbone: what is a linear map is moved exactly, what is not is an honest estimate."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from everlearn.errors import InputError, InvalidError, PreconditionError
from everlearn.heads import head_for
from everlearn.memories.statistics import Statistics
from everlearn.metrics.agreement import agreement
from everlearn.metrics.prequential import Prequential
from everlearn.spec.model import Memory as Declared
from everlearn.sums import Sums
from everlearn.upgrade import FeatureMap, Pairs, fit_map, move
from everlearn.values import FeatureScale, LinearHead

Integers = npt.NDArray[np.int16]
LABELS = ("ant", "bee", "cat")
HEADS = ("balanced_ridge", "balanced_lda", "ridge", "lda", "ncm")


def scale_of(dim: int, step: float = 0.01) -> FeatureScale:
    return FeatureScale(step_d=np.full(dim, step, np.float32))


def stream(count: int, dim: int, seed: int) -> tuple[Integers, list[str]]:
    """Integers around a centre of the class's own."""
    random = np.random.default_rng(seed)
    class_B = np.arange(count) % len(LABELS)
    centre_Cd = np.random.default_rng(7).integers(-60, 60, (len(LABELS), dim))
    rows = centre_Cd[class_B] + random.integers(-80, 81, (count, dim))
    return rows.astype(np.int16), [LABELS[index] for index in class_B]


def sums_of(rows_Bd: Integers, labels: list[str]) -> Sums:
    sums = Sums(rows_Bd.shape[1], LABELS)
    sums.add(rows_Bd, labels)
    return sums


def mapped(old_Bd: Integers, new_Be: Integers, labels: list[str], old: FeatureScale, new: FeatureScale) -> FeatureMap:
    pairs = Pairs(old_Bd.shape[1], new_Be.shape[1])
    for start in range(0, len(labels), 50):
        part = slice(start, start + 50)
        pairs.add(old_Bd[part], new_Be[part], labels[part])
    return fit_map(pairs, old, new)


def wrong_share(head: LinearHead, rows_Bd: Integers, labels: list[str], scale: FeatureScale) -> float:
    best_B = head.scores(scale.restore(rows_Bd)).argmax(axis=1)
    return float(np.mean([head.labels[best] != label for best, label in zip(best_B, labels, strict=True)]))


@pytest.mark.parametrize("kind", HEADS)
def test_moving_to_the_same_backbone_leaves_the_head_as_it_was(kind: str) -> None:
    learned_Bd, labels = stream(240, 12, 0)
    seen_Bd, guessed = stream(300, 12, 1)
    scale = scale_of(12)
    moved = move(sums_of(learned_Bd, labels), mapped(seen_Bd, seen_Bd, guessed, scale, scale), scale, scale)
    before, after = (head_for(kind).solve(sums, scale) for sums in (sums_of(learned_Bd, labels), moved))
    assert after.labels == before.labels
    assert after.regularization == pytest.approx(before.regularization, rel=1e-3)
    np.testing.assert_allclose(after.weight_dC, before.weight_dC, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(after.bias_C, before.bias_C, rtol=1e-3, atol=1e-4)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), new_dim=st.integers(1, 14), shift=st.integers(-50, 50))
def test_a_linear_map_of_features_is_recovered_and_the_sums_are_those_of_learning_anew(
    seed: int, new_dim: int, shift: int
) -> None:
    old, new = scale_of(9, 0.01), scale_of(new_dim, 0.03)
    true_de = np.random.default_rng(seed).integers(-3, 4, (9, new_dim))

    def through(rows_Bd: Integers) -> Integers:
        return (rows_Bd @ true_de + shift).astype(np.int16)

    learned_Bd, labels = stream(120, 9, seed)
    seen_Bd, guessed = stream(200, 9, seed + 1)
    to = mapped(seen_Bd, through(seen_Bd), guessed, old, new)
    np.testing.assert_allclose(to.weight_de, true_de * 3, atol=1e-5)
    moved, anew = move(sums_of(learned_Bd, labels), to, old, new), sums_of(through(learned_Bd), labels)
    size = max(float(np.abs(anew.gram_dd).max()), 1.0)
    np.testing.assert_allclose(moved.count_C, anew.count_C)
    np.testing.assert_allclose(moved.sum_Cd, anew.sum_Cd, atol=1e-4 * np.sqrt(size * 120))
    np.testing.assert_allclose(moved.gram_dd, anew.gram_dd, atol=1e-4 * size)
    assert not moved.is_exact


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_neither_order_nor_batching_of_the_pairs_shows(seed: int) -> None:
    old_Bd, labels = stream(90, 5, seed)
    new_Be, _ = stream(90, 7, seed + 1)
    order = np.random.default_rng(seed).permutation(90)
    one, other = Pairs(5, 7), Pairs(5, 7)
    one.add(old_Bd, new_Be, labels)
    for part in np.array_split(order, 7):
        other.add(old_Bd[part], new_Be[part], [labels[row] for row in part])
    assert one.sums.digest() == other.sums.digest()


def nonlinear(rows_Bd: Integers, seed: int = 3) -> Integers:
    """A wider layer with a rectifier: the same samples seen by another backbone."""
    weight_de = np.random.default_rng(seed).normal(0, 0.5, (rows_Bd.shape[1], 24))
    return np.maximum(rows_Bd @ weight_de, 0).round().astype(np.int16)


@pytest.mark.parametrize("kind", HEADS)
def test_a_head_moved_to_a_backbone_that_is_no_linear_map_is_nearly_as_good_as_one_learned_anew(kind: str) -> None:
    old, new = scale_of(12), scale_of(24)
    learned_Bd, labels = stream(600, 12, 0)
    seen_Bd, _ = stream(800, 12, 1)
    asked_Bd, truth = stream(600, 12, 2)
    sums = sums_of(learned_Bd, labels)
    before = head_for(kind).solve(sums, old)
    guessed = [before.labels[best] for best in before.scores(old.restore(seen_Bd)).argmax(axis=1)]
    to = mapped(seen_Bd, nonlinear(seen_Bd), guessed, old, new)
    moved = head_for(kind).solve(move(sums, to, old, new), new)
    anew = head_for(kind).solve(sums_of(nonlinear(learned_Bd), labels), new)
    share, best = (
        wrong_share(moved, nonlinear(asked_Bd), truth, new),
        wrong_share(anew, nonlinear(asked_Bd), truth, new),
    )
    assert share <= best + 0.03
    # The control: without a map the means are those of another space.
    assert wrong_share(anew, nonlinear(asked_Bd, seed=4), truth, new) > share + 0.2


def test_the_spread_within_classes_is_that_of_the_new_features() -> None:
    old, new = scale_of(12), scale_of(24)
    learned_Bd, labels = stream(900, 12, 0)
    seen_Bd, guessed = stream(900, 12, 1)
    moved = move(sums_of(learned_Bd, labels), mapped(seen_Bd, nonlinear(seen_Bd), guessed, old, new), old, new)
    anew = sums_of(nonlinear(learned_Bd), labels)

    def within(sums: Sums) -> float:
        mean_Cd = sums.sum_Cd / sums.count_C[:, None]
        return float(np.trace(sums.gram_dd) - np.sum(mean_Cd**2 * sums.count_C[:, None]))

    assert within(moved) == pytest.approx(within(anew), rel=0.05)


def test_labels_keep_their_order_and_one_without_samples_stays_without() -> None:
    scale = scale_of(4)
    sums = Sums(4, ["zebra", *LABELS, "yak"])
    rows_Bd, labels = stream(60, 4, 0)
    sums.add(rows_Bd, labels)
    moved = move(sums, mapped(rows_Bd, rows_Bd, labels, scale, scale), scale, scale)
    assert moved.labels == sums.labels
    assert moved.count_C.tolist() == [0, 20, 20, 20, 0]
    assert not moved.sum_Cd[[0, 4]].any()


def test_a_moved_memory_says_why_it_is_no_longer_exact_also_after_a_restart_and_goes_on_learning() -> None:
    scale = scale_of(4)
    rows_Bd, labels = stream(60, 4, 0)
    memory = Statistics.create(4, [])
    memory.integrate(rows_Bd, labels)
    assert (memory.is_exact, memory.inexact_because) == (True, "")
    sums = move(memory.sums, mapped(rows_Bd, rows_Bd, labels, scale, scale), scale, scale)
    moved = Statistics.from_bytes(
        memory.moved_to(sums, Declared(kind="statistics"), story="moved from a to b").to_bytes()
    )
    assert (moved.is_exact, moved.inexact_because) == (False, "moved from a to b")
    assert moved.seen_C.tolist() == memory.seen_C.tolist() == [20, 20, 20]
    moved.integrate(rows_Bd[:3], labels[:3])
    assert moved.seen_C.tolist() == [21, 21, 21]
    again = Statistics.from_bytes(moved.to_bytes()).moved_to(moved.sums, Declared(kind="statistics"), story="then to c")
    assert again.inexact_because == "moved from a to b; then to c"
    with pytest.raises(PreconditionError, match="moved to another backbone"):
        moved.sums.merge(memory.sums)


def test_a_record_forgets_features_and_nothing_else() -> None:
    record = Prequential(window=100)
    for seed in range(10):
        rows_Bd, labels = stream(40, 6, seed)
        record.update(labels, labels, features_Bd=rows_Bd.astype(np.float32) + 50 * (seed > 6))
    before = record.report()
    assert before["drift"]["norm_shift"] > 0.5
    record.forget_features()
    after = Prequential.from_dict(record.to_dict()).report()
    assert after["drift"].get("norm_shift") is None
    assert {**after, "drift": None} == {**before, "drift": None}
    record.update(labels, labels, features_Bd=np.ones((40, 9), np.float32))


def test_what_cannot_be_moved_is_refused() -> None:
    scale = scale_of(4)
    rows_Bd, labels = stream(30, 4, 0)
    to = mapped(rows_Bd, rows_Bd, labels, scale, scale)
    with pytest.raises(PreconditionError, match="no sample has been learned"):
        move(Sums(4, LABELS), to, scale, scale)
    with pytest.raises(InvalidError):
        move(Sums(5, LABELS), to, scale, scale)
    with pytest.raises(PreconditionError, match="a map needs many"):
        fit_map(Pairs(4, 4), scale, scale)
    with pytest.raises(PreconditionError, match="together at most 8192"):
        Pairs(8000, 200)
    with pytest.raises(InputError):
        Pairs(4, 4).add(rows_Bd, rows_Bd[:, :3], labels)
    with pytest.raises(InvalidError):
        Sums.estimated(LABELS, np.ones(3), np.full((3, 4), np.nan), np.eye(4))


def test_a_sure_decision_that_changes_costs_more_than_a_wavering_one() -> None:
    sure, wavering = np.array([[1, 0]] * 50, np.float32), np.array([[0.51, 0.49]] * 50, np.float32)
    new = np.array([[0, 1]] * 50, np.float32)
    found = [agreement(old, new, 0.1) for old in (sure, wavering)]
    assert [each.share for each in found] == [0, 0]
    assert found[0].drop > 0.99
    assert found[1].drop < 0.11
    assert agreement(sure, sure, 0.1).drop == 0
    # Few samples bound nothing, however well they agree.
    assert agreement(sure[:5], sure[:5], 0.1).drop_bound > agreement(sure, sure, 0.1).drop_bound > 0


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), rows=st.integers(1, 60))
def test_the_expected_loss_lies_between_nothing_and_the_share_of_other_decisions(seed: int, rows: int) -> None:
    random = np.random.default_rng(seed)
    old, new = (random.normal(0, 1, (rows, 4)).astype(np.float32) for _ in range(2))
    found = agreement(old, new, float(random.uniform(0.05, 3)))
    assert 0 <= found.drop <= 1 - found.share + 1e-12
    assert found.drop <= found.drop_bound <= 1
    assert agreement(old, new, None).drop == pytest.approx(1 - found.share)
