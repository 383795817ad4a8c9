"""What is accepted as samples, what is refused and what the refusal says."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from everlearn_client import Batch, Features, InvalidArgument, Pixels, split_batch
from everlearn_client.samples import MESSAGE_LIMIT_BYTES, to_message
from everlearn_protos.arrays import from_tensor


def test_files_are_taken_as_bytes_or_paths(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"one")
    message = to_message([tmp_path / "a.png", str(tmp_path / "a.png"), b"two"])
    assert list(message.encoded_images.images) == [b"one", b"one", b"two"]


def test_arrays_travel_bit_for_bit() -> None:
    images = np.arange(2 * 4 * 5 * 3, dtype=np.uint8).reshape(2, 4, 5, 3)
    assert np.array_equal(from_tensor(to_message(images).images), images)
    assert list(to_message(images[0]).images.shape) == [1, 4, 5, 3]
    flipped = images[:, ::-1]
    assert np.array_equal(from_tensor(to_message(flipped).images), flipped)
    features = np.random.default_rng(0).normal(size=(3, 7)).astype(np.float32)
    assert np.array_equal(from_tensor(to_message(Features(features)).features), features)
    pixels = np.zeros((2, 3, 8, 8), np.float32)
    assert list(to_message(Pixels(pixels)).pixels.shape) == [2, 3, 8, 8]


@pytest.mark.parametrize(
    ("samples", "hint"),
    [
        (np.zeros((2, 8, 8), np.uint8), "np.stack"),
        (np.zeros((2, 8, 8, 1), np.uint8), "np.stack"),
        (np.zeros((2, 3, 8, 8), np.uint8), "transpose"),
        (np.zeros((2, 8, 8, 4), np.uint8), "RGB"),
        (np.zeros((2, 0, 8, 3), np.uint8), "RGB"),
        (np.zeros((2, 8), np.float32), "Features"),
        (np.zeros((2, 8, 8, 3), np.float64), "Pixels"),
        (Features(np.zeros((2, 8))), "np.asarray"),
        (Features(np.zeros(8, np.float32)), r"\[N, d\]"),
        (Features([[1.0]]), "list"),
        (Pixels(np.zeros((2, 8, 8, 3), np.float32)), "3 are needed"),
        (Pixels(np.zeros((2, 3, 8), np.float32)), r"\[N, 3, height, width\]"),
        (b"bytes", "list of image files"),
        ("file.png", "list of image files"),
        ([np.zeros((8, 8, 3), np.uint8)], "np.stack"),
        ([3], r"samples\[0\] is a int"),
        (None, "NoneType"),
        (np.zeros((20, 300, 300, 3), np.uint8), "send fewer"),
    ],
)
def test_a_refusal_says_what_would_be_right(samples: Any, hint: str) -> None:
    with pytest.raises(InvalidArgument, match=hint) as caught:
        to_message(samples)
    assert caught.value.field.startswith("samples")


@given(
    sizes=st.lists(st.integers(0, 3000), max_size=40),
    target=st.integers(100, 5000),
    most=st.integers(0, 7),
)
@settings(deadline=None, max_examples=100)
def test_splitting_keeps_every_sample_once_in_order_and_within_bounds(sizes: list[int], target: int, most: int) -> None:
    files = [bytes([i % 256]) * size for i, size in enumerate(sizes)]
    labels = [str(i) for i in range(len(sizes))]
    parts = list(split_batch(Batch(files, labels), target_bytes=target, limit_bytes=10_000, max_samples=most))
    assert [f for part in parts for f in part.samples] == files  # type: ignore[union-attr]  # a list of files
    assert [label for part in parts for label in part.labels] == labels
    for part in parts:
        assert to_message(part.samples).ByteSize() <= target or len(part.labels) == 1
        assert not most or len(part.labels) <= most
    # No more parts than needed: the first sample of the next would not have fitted.
    for part, following in itertools.pairwise(parts):
        filled = sum(len(f) + 8 + len(label) + 8 for f, label in zip(part.samples, part.labels, strict=True))  # type: ignore[arg-type]  # files
        more = len(following.samples[0]) + 8 + len(following.labels[0]) + 8  # type: ignore[index, arg-type]  # files
        assert filled + more > target or len(part.labels) == most


def test_one_sample_above_the_limit_is_refused_by_number() -> None:
    large = np.zeros((1, 1200, 1200, 3), np.uint8)
    with pytest.raises(InvalidArgument, match=f"{MESSAGE_LIMIT_BYTES:,}") as caught:
        list(split_batch(Batch(large, ["a"])))
    assert caught.value.field == "samples[0]"
