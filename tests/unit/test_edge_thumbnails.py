"""Thumbnails: means of areas, and PNG files that any reader takes."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from everlearn_client.edge.policy import SendPolicy
from everlearn_client.edge.thumbnails import Resized, longest_side, png, reduced
from everlearn_client.errors import InvalidArgument


def picture(height: int, width: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    """Smooth and noisy parts."""
    random = np.random.default_rng(seed)
    slope = np.add.outer(np.arange(height), np.arange(width))[:, :, None] * np.array([1, 2, 3])
    return (slope + random.integers(0, 40, (height, width, 3))).astype(np.uint8)


def slowly(image_HWC: npt.NDArray[np.uint8], height: int, width: int) -> npt.NDArray[np.float64]:
    """By its definition: the share of each pixel in each area."""

    def shares(size: int, count: int) -> npt.NDArray[np.float64]:
        edges = np.arange(count + 1) * size / count
        low, high = np.maximum.outer(edges[:-1], np.arange(size)), np.minimum.outer(edges[1:], np.arange(size) + 1)
        return np.maximum(0.0, high - low) * count / size

    return np.einsum("hH,HWC,wW->hwC", shares(image_HWC.shape[0], height), image_HWC, shares(image_HWC.shape[1], width))


@given(st.integers(1, 40), st.integers(1, 40), st.data())
def test_each_pixel_is_the_mean_of_its_area(height: int, width: int, data: st.DataObject) -> None:
    target = data.draw(st.integers(1, height)), data.draw(st.integers(1, width))
    image = picture(height, width)
    made = reduced(image, *target)
    assert (made.shape, made.dtype) == ((*target, 3), np.uint8)
    assert np.abs(made - slowly(image, *target)).max() <= 0.5 + 1e-3


@given(st.integers(1, 33), st.integers(1, 33), st.integers(0, 5))
def test_a_png_is_read_as_the_pixels_that_it_was_made_of(height: int, width: int, seed: int) -> None:
    image = picture(height, width, seed)
    with Image.open(io.BytesIO(png(image)), formats=["PNG"]) as read:
        read.verify()
    with Image.open(io.BytesIO(png(image))) as read:
        assert read.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(read), image)


def test_a_png_is_about_as_small_as_pillows() -> None:
    image = reduced(picture(480, 640), 96, 128)
    theirs = io.BytesIO()
    Image.fromarray(image).save(theirs, "PNG")
    assert len(png(image)) < 1.1 * len(theirs.getvalue())


@pytest.mark.parametrize(
    ("front", "size", "expected"),
    [
        (Resized(height=256, width=256, squash=False), (480, 640), (256, 342)),
        (Resized(height=256, width=256, squash=False), (640, 480), (342, 256)),
        (Resized(height=256, width=256, squash=False), (300, 200), (300, 200)),
        (Resized(height=224, width=224, squash=True), (480, 640), (224, 224)),
        (Resized(height=224, width=224, squash=True), (480, 100), (224, 100)),
    ],
)
def test_what_a_front_resizes_to_is_covered_and_nothing_grows(
    front: Resized, size: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert front.of(*size) == expected


def test_a_given_side_is_the_longer_one() -> None:
    assert longest_side(480, 640, 64) == (48, 64)
    assert longest_side(640, 480, 64) == (64, 48)
    assert longest_side(10_000, 3, 64) == (64, 1)
    assert longest_side(20, 30, 64) == (20, 30)


@pytest.mark.parametrize("wrong", [np.zeros((4, 4, 3), np.float32), np.zeros((4, 4), np.uint8), np.zeros(4, np.uint8)])
def test_what_is_no_image_is_refused(wrong: npt.NDArray[np.uint8]) -> None:
    with pytest.raises(InvalidArgument, match=r"uint8 \[H, W, 3\]"):
        reduced(wrong, 2, 2)
    with pytest.raises(InvalidArgument, match="would grow"):
        reduced(np.zeros((4, 4, 3), np.uint8), 5, 2)


def test_a_size_goes_with_thumbnails_alone() -> None:
    assert SendPolicy(send="thumbnail").thumbnail_px is None
    for wrong in ({"send": "thumbnail", "thumbnail_px": 7}, {"thumbnail_px": 64}):
        with pytest.raises(InvalidArgument, match="thumbnail_px"):
            SendPolicy(**wrong)  # type: ignore[arg-type]  # as above
