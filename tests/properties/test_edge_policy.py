"""What a device sends: limits hold for any history, copies are known, doubt is measured."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tests import tiny

from everlearn_client import InvalidArgument
from everlearn_client.edge.policy import Allowance, BackOff, Chooser, SendPolicy, TokenBucket, is_unsure, picture_hash


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@given(
    per_s=st.floats(1e-4, 100),
    holds=st.floats(1, 1000),
    steps=st.lists(st.tuples(st.floats(-5, 1000), st.floats(0, 50)), max_size=60),
)
def test_a_bucket_never_gives_more_than_it_held_and_what_flowed_in(
    per_s: float, holds: float, steps: list[tuple[float, float]]
) -> None:
    clock = Clock()
    bucket = TokenBucket(per_s=per_s, holds=holds, filled=holds, clock_s=clock)
    given_out = latest_s = 0.0
    for passed_s, amount in steps:
        clock.now_s += passed_s  # a clock that runs backwards gives nothing
        latest_s = max(latest_s, clock.now_s)
        wait_s = bucket.wait_s(amount)
        if bucket.take(amount):
            assert wait_s == 0
            given_out += amount
        assert given_out <= holds + per_s * latest_s + max(0.0, 50 - holds) + 1e-6 * holds


@given(per_s=st.floats(1e-3, 10), amount=st.floats(0.1, 100))
def test_after_the_wait_that_a_bucket_names_it_gives(per_s: float, amount: float) -> None:
    clock = Clock()
    bucket = TokenBucket(per_s=per_s, holds=100, filled=0, clock_s=clock)
    assert not bucket.take(amount)
    clock.now_s += bucket.wait_s(amount) * 1.000001
    assert bucket.take(amount)


@given(st.lists(st.floats(0, 100), min_size=1, max_size=50))
def test_no_more_samples_go_than_the_hourly_rate_allows(pauses_s: list[float]) -> None:
    clock = Clock()
    chooser = Chooser(SendPolicy(samples_per_hour=60, duplicate_bits=None), clock)
    for pause_s in pauses_s:
        clock.now_s += pause_s
        chooser.decide(scores_C=None, sample=None)
    assert chooser.counts["send"] <= 60 + clock.now_s / 60
    assert sum(chooser.counts.values()) == len(pauses_s)


@given(st.lists(st.floats(-10, 10), min_size=2, max_size=6), st.floats(0.01, 0.99))
def test_doubt_is_the_margin_of_the_softmax_and_ignores_a_common_offset(scores: list[float], margin: float) -> None:
    policy = SendPolicy(only_unsure=True, margin_below=margin)
    share = np.exp(np.array(scores)) / np.exp(np.array(scores)).sum()
    second, best = np.sort(share)[-2:]
    if abs(best - second - margin) > 1e-9:
        assert is_unsure(np.array(scores), policy) == (best - second < margin)
        assert is_unsure(np.array(scores) + 100, policy) == is_unsure(np.array(scores), policy)


def test_entropy_is_a_share_of_its_maximum_and_broken_scores_are_doubtful() -> None:
    policy = SendPolicy(only_unsure=True, entropy_above=0.5)
    assert is_unsure(np.zeros(10), policy)
    assert not is_unsure(np.array([20.0, 0, 0, 0]), policy)
    assert is_unsure(np.array([np.nan, 1]), policy)
    assert is_unsure(np.array([1.0]), policy)


def test_what_the_model_is_sure_of_is_left_out_and_takes_nothing_of_the_rate() -> None:
    chooser = Chooser(SendPolicy(only_unsure=True, samples_per_hour=1), Clock())
    sure, unsure = np.array([9.0, 0, 0]), np.array([1.0, 1, 1])
    assert [chooser.decide(scores_C=each, sample=None) for each in (sure, unsure, sure, unsure)] == [
        "sure",
        "send",
        "sure",
        "rate",
    ]


def test_the_same_scene_again_is_a_duplicate_also_as_jpeg_brighter_or_smaller() -> None:
    scenes = [_scene(seed) for seed in range(30)]
    chooser = Chooser(SendPolicy(duplicate_bits=6), Clock())
    assert [chooser.decide(scores_C=None, sample=each, label="a") for each in scenes] == ["send"] * 30
    for scene in scenes:
        buffer = io.BytesIO()
        Image.fromarray(scene).save(buffer, "JPEG", quality=60)
        again = np.asarray(Image.open(buffer))
        smaller = np.asarray(Image.fromarray(scene).resize((70, 50)))
        brighter = np.clip(scene.astype(int) + 12, 0, 255).astype(np.uint8)
        for copy in (again, smaller, brighter):
            assert chooser.decide(scores_C=None, sample=copy, label="a") == "duplicate"
    assert chooser.decide(scores_C=None, sample=scenes[0], label="b") == "send"


def test_features_are_compared_by_direction_and_the_window_is_bounded() -> None:
    chooser = Chooser(SendPolicy(duplicate_window=4), Clock())
    vectors = np.eye(6, dtype=np.float32)
    assert [chooser.decide(scores_C=None, sample=each) for each in vectors] == ["send"] * 6
    assert chooser.decide(scores_C=None, sample=3 * vectors[5]) == "duplicate"
    assert chooser.decide(scores_C=None, sample=vectors[0]) == "send"  # forgotten


def test_a_days_bytes_are_not_exceeded_after_a_start_either_and_a_metered_line_waits() -> None:
    clock, metered = Clock(), [False]
    line = Allowance(SendPolicy(bytes_per_day=24_000), clock, metered=lambda: metered[0])
    assert [line.take(500), line.take(500), line.take(500)] == [True, True, False]
    assert line.wait_s(500) == pytest.approx(1800)
    clock.now_s += 86_400
    metered[0] = True
    assert not line.take(1)
    metered[0] = False
    assert sum(line.take(1000) for _ in range(100)) == 24
    assert Allowance(SendPolicy(when_metered="send"), clock, metered=lambda: True).take(10**9)


@pytest.mark.parametrize("wrong", [{"margin_below": 0}, {"entropy_above": 1}, {"temperature": 0}, {"bytes_per_day": 0}])
def test_a_policy_that_makes_no_sense_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InvalidArgument):
        SendPolicy(**wrong)  # type: ignore[arg-type]  # numbers all of them


@given(st.floats(1, 1000), st.integers(1, 80), st.floats(0, 2000))
def test_pauses_double_up_to_the_longest_and_begin_anew_after_a_success(
    longest_s: float, failures: int, asked_s: float
) -> None:
    back_off = BackOff(longest_s=longest_s, uniform=lambda low, high: high)
    pauses_s = [back_off.failed() for _ in range(failures)]
    assert pauses_s == [min(longest_s, 2.0**failure) for failure in range(failures)]
    assert back_off.failed(at_least_s=asked_s) >= asked_s
    back_off.succeeded()
    assert back_off.failed() == 1.0


def test_flat_and_tiny_pictures_have_a_hash() -> None:
    for image in (np.zeros((1, 1, 3), np.uint8), np.full((5, 300, 3), 255, np.uint8), tiny.images(1, 0)[0]):
        assert 0 <= picture_hash(image) < 2**64


def _scene(seed: int) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((160, 120), Image.Resampling.BICUBIC))
