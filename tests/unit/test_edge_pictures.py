"""A device sees the pixels that the server would have seen."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from everlearn.inputs.image import decode
from everlearn_client.edge import pictures
from everlearn_client.errors import InvalidArgument

RGB = np.random.default_rng(0).integers(0, 256, (20, 30, 3)).astype(np.uint8)


def encoded(mode: str, form: str, **options: object) -> bytes:
    image = (
        Image.fromarray(RGB).convert(mode) if mode != "I;16" else Image.fromarray(RGB[:, :, 0].astype(np.uint16) * 257)
    )
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded("RGB", "JPEG", exif=exif)


@pytest.mark.parametrize(
    "data",
    [
        encoded("RGB", "JPEG"),
        encoded("RGB", "JPEG", progressive=True),
        encoded("CMYK", "JPEG"),
        encoded("L", "JPEG"),
        turned(),
        encoded("RGBA", "PNG"),
        encoded("P", "PNG"),
        encoded("P", "PNG", transparency=3),
        encoded("I;16", "PNG"),
        encoded("1", "PNG"),
        encoded("RGBA", "WEBP", lossless=True),
    ],
)
def test_a_picture_is_decoded_as_the_server_does(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(data)
    read = pictures.read(path)
    wanted = decode(data, encodings=("jpeg", "png", "webp"), max_bytes=2**20, max_pixels=2**20, field="x")
    np.testing.assert_array_equal(read.array, wanted)
    assert read.array.dtype == np.uint8
    assert read.encoded == data


@pytest.mark.parametrize("array", [RGB, np.linspace(0, 1, 13, dtype=np.float32)])
def test_an_array_is_taken_as_it_is(tmp_path: Path, array: np.ndarray) -> None:
    np.save(tmp_path / "a.npy", array)
    read = pictures.read(tmp_path / "a.npy")
    np.testing.assert_array_equal(read.array, array)
    assert read.encoded is None


@pytest.mark.parametrize(
    ("name", "data", "match"),
    [
        ("a.jpg", b"", "no bytes"),
        ("a.jpg", b"no picture", "not a JPEG, PNG or WebP"),
        ("a.jpg", encoded("RGB", "JPEG")[:300], "truncated or corrupt"),
        ("a.npy", b"no array", "not an .npy"),
        ("a.gif.png", encoded("RGB", "GIF"), "not a JPEG, PNG or WebP"),
    ],
)
def test_what_is_none_says_so(tmp_path: Path, name: str, data: bytes, match: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InvalidArgument, match=match):
        pictures.read(tmp_path / name)


def test_arrays_of_objects_or_other_numbers_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([{"a": 1}], object), allow_pickle=True)
    with pytest.raises(InvalidArgument, match=r"not an \.npy"):
        pictures.read(tmp_path / "a.npy")
    np.save(tmp_path / "a.npy", np.zeros(3))
    with pytest.raises(InvalidArgument, match="the array is float64"):
        pictures.read(tmp_path / "a.npy")


def test_a_picture_of_too_many_pixels_is_refused_before_it_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "MAX_PIXELS", 599)
    (tmp_path / "a.png").write_bytes(encoded("RGB", "PNG"))
    with pytest.raises(InvalidArgument, match="30 x 20; at most 599"):
        pictures.read(tmp_path / "a.png")
    monkeypatch.setattr(pictures, "MAX_PIXELS", 600)
    assert pictures.read(tmp_path / "a.png").array.shape == (20, 30, 3)
