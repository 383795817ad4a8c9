"""The four forms of samples: what is refused up front, and what one sample becomes."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from everlearn.errors import InputError, InvalidError, PayloadTooLargeError
from everlearn.inputs.forms import check, decode_one
from everlearn.inputs.samples import EncodedImages, Features, Images, Pixels, Samples, Tensors
from everlearn.spec.input import Input
from everlearn.values import FrontConfig, TensorFront

FRONT = FrontConfig(height=16, width=16)
DECLARED = Input(max_image_pixels=10_000, max_image_bytes=5_000)


def checked(samples: Samples) -> None:
    check(samples, front=FRONT, declared=DECLARED, feature_dim=5, field="batch.samples")


READINGS = TensorFront(shape=(4, 2), low=(0.0,), high=(1.0,))


def png() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.arange(20 * 30 * 3, dtype=np.uint8).reshape(20, 30, 3)).save(buffer, "PNG")
    return buffer.getvalue()


def holed(shape: tuple[int, ...], value: float) -> np.ndarray:
    array = np.zeros(shape, np.float32)
    array.reshape(len(array), -1)[2, 1] = value
    return array


@pytest.mark.parametrize(
    ("samples", "field", "message"),
    [
        (Images(np.zeros((2, 4, 4, 3), np.float32)), "images", "uint8"),  # type: ignore[arg-type]  # the point
        (Images(np.zeros((2, 4, 4), np.uint8)), "images", r"\[N, H, W, 3\]"),
        (Images(np.zeros((2, 4, 4, 1), np.uint8)), "images", r"\[N, H, W, 3\]"),
        (Images(np.zeros((2, 0, 4, 3), np.uint8)), "images", "H, W > 0"),
        (Images(np.zeros((1, 101, 100, 3), np.uint8)), "images", "at most 10000"),
        (Pixels(np.zeros((2, 3, 16, 16), np.float64)), "pixels", "float32"),  # type: ignore[arg-type]  # the point
        (Pixels(np.zeros((2, 3, 16, 17), np.float32)), "pixels", r"\['N', 3, 16, 16\]"),
        (Pixels(holed((4, 3, 16, 16), np.nan)), "pixels[2]", "NaN or infinity"),
        (Features(np.zeros((2, 6), np.float32)), "features", r"\['N', 5\]"),
        (Features(np.zeros(5, np.float32)), "features", r"\['N', 5\]"),
        (Features(holed((4, 5), np.inf)), "features[2]", "NaN or infinity"),
        (Tensors(np.zeros((2, 16), np.float32)), "tensors", "the model takes images"),
        (EncodedImages((png(), b"")), "encoded_images.images[1]", "empty"),
        (EncodedImages((bytes(5_001),)), "encoded_images.images[0]", "at most 5000"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_field(samples: Samples, field: str, message: str) -> None:
    with pytest.raises(InvalidError, match=message) as caught:
        checked(samples)
    assert caught.value.field == f"batch.samples.{field}"


@pytest.mark.parametrize(
    "samples",
    [
        EncodedImages(()),
        EncodedImages((png(),)),
        Images(np.zeros((0, 4, 4, 3), np.uint8)),
        Pixels(np.zeros((0, 3, 16, 16), np.float32)),
        Features(np.full((2, 5), 3e38, np.float32)),
    ],
)
def test_what_fits_is_accepted_empty_or_extreme(samples: Samples) -> None:
    checked(samples)


def test_a_file_an_array_and_its_pixels_are_the_same_sample() -> None:
    image_HWC = np.asarray(Image.open(io.BytesIO(png())))
    forms = [EncodedImages((png(),)), Images(image_HWC[None])]
    first, second = (decode_one(form, 0, front=FRONT, declared=DECLARED) for form in forms)
    assert np.array_equal(first, second)
    out = np.empty((3, 16, 16), np.float32)
    assert decode_one(Pixels(first[None]), 0, front=FRONT, declared=DECLARED, out=out) is out
    assert np.array_equal(out, first)


def test_a_bad_image_is_named_by_its_place_in_the_batch() -> None:
    batch = EncodedImages((png(), png()[:100]))
    decode_one(batch, 0, front=FRONT, declared=DECLARED)
    with pytest.raises(InputError) as caught:
        decode_one(batch, 1, front=FRONT, declared=DECLARED, field="batch.samples")
    assert caught.value.field == "batch.samples.encoded_images.images[1]"


def test_a_bomb_is_named_by_its_place_in_the_batch() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (101, 100)).save(buffer, "PNG")
    with pytest.raises(PayloadTooLargeError, match="101 x 100") as caught:
        decode_one(EncodedImages((buffer.getvalue(),)), 0, front=FRONT, declared=DECLARED)
    assert caught.value.field == "samples.encoded_images.images[0]"


@pytest.mark.parametrize(
    ("samples", "field", "message"),
    [
        (Images(np.zeros((2, 4, 4, 3), np.uint8)), "images", "takes tensors"),
        (EncodedImages((png(),)), "encoded_images", "takes tensors"),
        (Tensors(np.zeros((2, 4, 2), np.float64)), "tensors", "float32"),  # type: ignore[arg-type]  # the point
        (Tensors(np.zeros((2, 8), np.float32)), "tensors", r"\['N', 4, 2\]"),
        (Tensors(holed((4, 4, 2), np.nan)), "tensors[2]", "NaN or infinity"),
        (Tensors(holed((4, 4, 2), -np.inf)), "tensors[2]", "NaN or infinity"),
        (Features(np.zeros((2, 7), np.float32)), "features", r"\['N', 8\]"),
    ],
)
def test_what_does_not_fit_a_model_of_tensors_is_refused(samples: Samples, field: str, message: str) -> None:
    with pytest.raises(InvalidError, match=message) as caught:
        check(samples, front=READINGS, declared=DECLARED, feature_dim=8, field="batch.samples")
    assert caught.value.field == f"batch.samples.{field}"


def test_a_tensor_reaches_the_trunk_as_it_came() -> None:
    values = np.random.default_rng(0).normal(size=(3, 4, 2)).astype(np.float32)
    check(Tensors(values), front=READINGS, declared=DECLARED, feature_dim=8)
    one = decode_one(Tensors(values), 1, front=READINGS, declared=DECLARED)
    assert np.shares_memory(one, values)
    assert np.array_equal(one, values[1])
