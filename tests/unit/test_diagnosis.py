"""Every threshold of `everlearn doctor`, on figures made by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from everlearn_client.choosing import diagnosis
from everlearn_client.choosing.diagnosis import CurvePoint
from everlearn_client.choosing.duplicates import repeats
from everlearn_client.choosing.findings import Finding, Level
from everlearn_client.choosing.input_checks import Expected, ImageFigures, check_images, check_tensors, check_texts
from everlearn_client.choosing.trial import block_edges
from everlearn_client.errors import InvalidArgument
from everlearn_client.samples import Batch

PHOTO = ImageFigures(height=300, width=400, mean=0.45, std=0.24, greatest=1.0, colour=0.2)
EXPECTED = Expected(mean=0.449, std=0.226, side=224)


def inputs(*images: ImageFigures) -> dict[str, Finding]:
    return {finding.check: finding for finding in check_images(images, EXPECTED)}


def test_photographs_are_what_a_backbone_expects() -> None:
    assert {finding.level for finding in inputs(*[PHOTO] * 4).values()} == {Level.OK}


@pytest.mark.parametrize(
    ("change", "check", "level", "words"),
    [
        ({"greatest": 1 / 255, "mean": 0.002, "std": 0.002}, "range", Level.BAD, "cast to uint8"),
        ({"greatest": 16 / 255}, "range", Level.BAD, "no value above 16"),
        ({"std": 0.0}, "flat images", Level.BAD, "4 of 4"),
        ({"mean": 0.95}, "brightness", Level.WARN, "much too light"),
        ({"mean": 0.05}, "brightness", Level.WARN, "much too dark"),
        ({"std": 0.05}, "brightness", Level.WARN, "faint"),
        ({"height": 28, "width": 60}, "size", Level.WARN, "enlarged 8.0 times"),
        ({"colour": 0.0}, "colour", Level.OK, "4 of 4 images have no colour: right for scans"),
    ],
)
def test_what_is_odd_about_images_is_named(change: dict[str, float], check: str, level: Level, words: str) -> None:
    finding = inputs(*[replace(PHOTO, **change)] * 4)[check]  # type: ignore[arg-type]  # by field
    assert finding.level is level
    assert words in finding.found
    assert bool(finding.advice) == (level is not Level.OK)


def test_what_must_be_multiplied_is_said_exactly() -> None:
    assert inputs(replace(PHOTO, greatest=0.0627))["range"].advice.endswith("multiply by 15.9")


def test_a_few_flat_images_are_a_warning_and_some_without_colour_among_others_too() -> None:
    mixed = inputs(*[PHOTO] * 30, replace(PHOTO, std=0.001))
    assert mixed["flat images"].level is Level.WARN
    mixed = inputs(*[PHOTO] * 6, *[replace(PHOTO, colour=0.0)] * 4)
    assert mixed["colour"].level is Level.WARN
    assert "may stand for a label" in mixed["colour"].advice


@pytest.mark.parametrize(
    ("counts", "level"),
    [
        ({"a": 50, "b": 50}, Level.OK),
        ({"a": 50, "b": 5}, Level.OK),
        ({"a": 51, "b": 5}, Level.WARN),
        ({"a": 9, "b": 4}, Level.WARN),
        ({"a": 100}, Level.BAD),
    ],
)
def test_labels_are_judged_by_their_number_and_balance(counts: dict[str, int], level: Level) -> None:
    assert diagnosis.check_labels(counts).level is level


@pytest.mark.parametrize(
    ("duplicates", "conflicts", "level"),
    [(0, 0, Level.OK), (1, 0, Level.OK), (2, 0, Level.WARN), (1, 1, Level.WARN), (2, 2, Level.BAD)],
)
def test_equal_bytes_are_a_warning_and_with_two_labels_worse(duplicates: int, conflicts: int, level: Level) -> None:
    assert diagnosis.check_duplicates(100, duplicates, conflicts).level is level


@pytest.mark.parametrize(
    ("correct", "majority", "level"),
    [(90, 0.1, Level.OK), (30, 0.1, Level.WARN), (15, 0.1, Level.BAD), (90, 0.9, Level.BAD), (97, 0.6, Level.OK)],
)
def test_a_head_has_to_beat_the_answer_that_sees_nothing(correct: int, majority: float, level: Level) -> None:
    assert diagnosis.check_baseline(CurvePoint(known=100, tested=100, correct=correct), majority).level is level


def test_a_batch_that_was_just_learned_is_known() -> None:
    levels = [diagnosis.check_one_batch(correct, 32).level for correct in (32, 30, 10)]
    assert levels == [Level.OK, Level.WARN, Level.BAD]
    slow = diagnosis.check_one_batch(20, 32, times=25)
    assert (slow.level, "25 times over: it learns slowly" in slow.found) == (Level.WARN, True)


@pytest.mark.parametrize(
    ("residual", "per_class", "level"),
    [(0.3, 5, Level.OK), (0.7, 5, Level.WARN), (0.7, 50, Level.WARN), (0.95, 5, Level.WARN), (0.95, 50, Level.BAD)],
)
def test_a_backbone_is_blamed_only_where_there_were_samples_to_judge(
    residual: float, per_class: float, level: Level
) -> None:
    found = diagnosis.check_fit(gcv_residual=residual, log_me=0.1, h_score=1, h_shrinkage=0.1, per_class=per_class)
    assert found.level is level


def curve(*correct: int) -> Finding:
    points = [CurvePoint(known=100 * 2**i, tested=1000, correct=each) for i, each in enumerate(correct)]
    return diagnosis.check_curve(points, classes=10)


def test_a_curve_that_rises_asks_for_more_and_one_that_is_flat_says_from_where() -> None:
    rising = curve(500, 600, 700)
    assert (rising.level, "rising by 10.0 points" in rising.found) == (Level.WARN, True)
    flat = curve(500, 898, 900, 901)
    assert (flat.level, "flat from about 20 a class" in flat.found) == (Level.OK, True)
    assert curve(800).level is Level.WARN


def test_a_head_that_learns_by_steps_begins_knowing_nothing_or_is_told_to() -> None:
    begun = {"first_loss": 2.31, "log_classes": 2.3, "gradient_norm": 1.0, "learning_rate": 0.05}
    found = diagnosis.check_steps(begun)
    assert (found.level, "2.31, against ln C = 2.30" in found.found) == (Level.OK, True)
    assert diagnosis.check_steps({**begun, "first_loss": 9.0}).level is Level.WARN


def test_an_error_bar_is_not_zero_where_all_were_right() -> None:
    assert 0 < CurvePoint(known=1, tested=20, correct=20).error < 0.1


def test_repeats_are_found_by_their_bytes() -> None:
    batches = [Batch([b"a", b"b", b"a"], ["x", "y", "x"]), Batch([b"b", b"c"], ["z", "x"])]
    found = repeats(iter(batches))
    assert (found.duplicates, found.conflicts, found.first_of_kind) == (2, 2, (0, 1, 4))


def test_blocks_double_and_a_single_sample_is_refused() -> None:
    assert block_edges(500) == [0, 31, 62, 125, 250, 500]
    with pytest.raises(InvalidArgument, match="at least 2"):
        block_edges(1)


def numbers(*columns: list[float]) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.array(columns, np.float32).T


def tensors(
    values: np.ndarray[tuple[int, ...], np.dtype[np.float32]], *ranges: tuple[float, float]
) -> dict[str, Finding]:
    return {finding.check: finding for finding in check_tensors(values, ranges, bits=12)}


def test_numbers_within_their_range_are_sound() -> None:
    found = tensors(numbers([0, 1, 0.5], [10, 0, 3]), (0, 1), (0, 10))
    assert {finding.level for finding in found.values()} == {Level.OK}


@pytest.mark.parametrize(
    ("values", "ranges", "check", "level", "words"),
    [
        (numbers([0, 1, 2]), [(0.0, 1.0)], "range", Level.WARN, "33.3% of the values outside"),
        (numbers([0, 1, 9]), [(0.0, 1.0)], "range", Level.BAD, "beyond 4 times they saturate"),
        (numbers([0, 1, 0], [3, 3, 3]), [(0.0, 1.0), (0.0, 3.0)], "constant", Level.WARN, "1 of 2 places"),
        (numbers([0, 1, 0]), [(0.0, 400.0)], "resolution", Level.WARN, "less than 4 steps of 12 bits"),
        (numbers([0, 1, 0]), [(0.0, 4000.0)], "resolution", Level.BAD, "places 0 vary"),
    ],
)
def test_what_is_odd_about_numbers_is_named(
    values: np.ndarray[tuple[int, ...], np.dtype[np.float32]],
    ranges: list[tuple[float, float]],
    check: str,
    level: Level,
    words: str,
) -> None:
    finding = tensors(values, *ranges)[check]
    assert finding.level is level
    assert words in finding.found
    assert finding.advice


def test_where_a_network_stands_before_the_features_a_coarse_range_costs_nothing() -> None:
    assert [finding.check for finding in check_tensors(numbers([0, 1]), [(0, 4000)], bits=None)] == [
        "range",
        "constant",
    ]


@pytest.mark.parametrize(("log_loss", "level"), [(0.3, Level.OK), (0.65, Level.WARN), (0.7, Level.BAD)])
def test_the_loss_is_judged_against_guessing(log_loss: float, level: Level) -> None:
    found = diagnosis.check_loss(log_loss=log_loss, classes=2, samples=100)
    assert found.level is level
    assert "ln 2 = 0.69" in found.found


def right(count: int) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    return np.arange(200) < count


def test_the_range_test_warns_only_where_another_regularization_is_better_beyond_the_noise() -> None:
    def check(declared: int, other: int, *, is_declared: bool = True) -> Finding:
        return diagnosis.check_range(
            "head.regularization",
            chosen=100.0,
            is_declared=is_declared,
            correct_N=right(declared),
            others={0.1: right(other), 10.0: right(20)},
        )

    assert check(100, 104).level is Level.OK
    worse = check(100, 150)
    assert (worse.level, "25.0 points more at 0.1" in worse.found) == (Level.WARN, True)
    assert worse.advice == "leave head.regularization out, or write 0.1"
    assert check(100, 150, is_declared=False).advice == "write head.regularization: 0.1"


def test_texts_without_words_and_texts_whose_end_is_not_read_are_told() -> None:
    sound = {finding.check: finding.level for finding in check_texts(["a word"] * 40, max_tokens=8)}
    assert sound == {"empty texts": Level.OK, "length": Level.OK}
    odd = {finding.check: finding for finding in check_texts(["a word", " - ", "word " * 40], max_tokens=8)}
    assert (odd["empty texts"].level, odd["length"].level) == (Level.BAD, Level.WARN)
    assert "1 of 3 texts are longer than 8 tokens hold" in odd["length"].found
