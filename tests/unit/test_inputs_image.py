"""Image files of every sort, good and bad."""

from __future__ import annotations

import io
import resource
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from everlearn.errors import InputError, InvalidError, PayloadTooLargeError
from everlearn.inputs.image import decode
from everlearn.values import ImageHWC

ENCODINGS = ("jpeg", "png", "webp")
FIELD = "samples.encoded_images.images[3]"


def decoded(data: bytes, *, encodings: tuple[str, ...] = ENCODINGS, max_pixels: int = 1_000_000) -> ImageHWC:
    return decode(data, encodings=encodings, max_bytes=1 << 20, max_pixels=max_pixels, field=FIELD)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def picture(mode: str = "RGB") -> Image.Image:
    levels = np.add.outer(np.arange(20), np.arange(30))[..., None] * np.array([4, 3, 2])
    return Image.fromarray(levels.astype(np.uint8)).convert(mode)


def png(width: int, height: int, *, depth: int = 8, colour: int = 2, data: bytes = b"") -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = zlib.compress(data, 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_each_accepted_encoding_decodes_to_rgb(kind: str) -> None:
    image_HWC = decoded(encoded(picture(), kind, **({} if kind == "PNG" else {"quality": 95})))
    assert image_HWC.shape == (20, 30, 3)
    assert image_HWC.dtype == np.uint8
    assert np.abs(image_HWC.astype(int) - np.asarray(picture())).mean() < 4


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1"])
def test_every_png_mode_becomes_rgb(mode: str) -> None:
    assert np.array_equal(decoded(encoded(picture(mode), "PNG")), np.asarray(picture(mode).convert("RGB")))


def test_a_palette_with_transparency_becomes_rgb_without_a_warning() -> None:
    data = encoded(picture("P"), "PNG", transparency=bytes(range(200)))
    assert np.array_equal(decoded(data), np.asarray(picture("P").convert("RGB")))


def test_alpha_is_dropped_not_composited() -> None:
    clear = Image.new("RGBA", (2, 2), (10, 20, 30, 0))
    assert decoded(encoded(clear, "PNG")).tolist() == [[[10, 20, 30]] * 2] * 2


def test_sixteen_bit_grey_keeps_its_upper_eight_bits() -> None:
    grey_HW = np.array([[0, 256, 65535], [255, 32768, 511]], np.uint16)
    data = png(3, 2, depth=16, colour=0, data=b"".join(b"\0" + row.astype(">u2").tobytes() for row in grey_HW))
    assert decoded(data)[..., 1].tolist() == [[0, 1, 255], [0, 128, 1]]


def test_a_cmyk_jpeg_becomes_rgb() -> None:
    assert decoded(encoded(picture("CMYK"), "JPEG")).shape == (20, 30, 3)


def test_the_exif_orientation_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image_HWC = decoded(encoded(picture(), "JPEG", exif=exif, quality=95))
    assert image_HWC.shape == (30, 20, 3)
    turned = np.asarray(picture().transpose(Image.Transpose.ROTATE_270)).astype(int)
    assert np.abs(image_HWC - turned).mean() < 4


def test_too_many_bytes_are_refused_unopened() -> None:
    with pytest.raises(PayloadTooLargeError, match="at most 1048576") as caught:
        decoded(b"\xff" * ((1 << 20) + 1))
    assert caught.value.field == FIELD


@pytest.mark.parametrize("side", [1001, 20_000, 2_000_000_000])
def test_a_bomb_is_refused_from_its_header(side: int) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(PayloadTooLargeError):
        decoded(png(side, side, data=bytes(1000)))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB


def test_an_image_at_the_limit_is_accepted() -> None:
    data = encoded(Image.new("RGB", (1000, 1000)), "PNG")
    assert decoded(data, max_pixels=1_000_000).shape == (1000, 1000, 3)
    with pytest.raises(PayloadTooLargeError, match="1000 x 1000 = 1000000 pixels"):
        decoded(data, max_pixels=999_999)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.9])
def test_a_truncated_file_is_refused(kind: str, share: float) -> None:
    rng = np.random.default_rng(0)
    data = encoded(Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)), kind)
    with pytest.raises(InputError) as caught:
        decoded(data[: int(len(data) * share)])
    assert caught.value.field == FIELD


def test_flipped_bytes_either_decode_or_are_refused_and_never_crash() -> None:
    rng = np.random.default_rng(1)
    for kind in ("PNG", "JPEG", "WEBP"):
        data = encoded(picture(), kind)
        for _ in range(200):
            broken = bytearray(data)
            for position in rng.integers(0, len(data), 3):
                broken[position] = rng.integers(0, 256)
            try:
                assert decoded(bytes(broken)).ndim == 3
            except InvalidError as error:
                assert error.field == FIELD  # noqa: PT017  # both ends are right


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "BMP", "PPM", "ICO", "EPS"])
def test_another_format_is_refused(kind: str) -> None:
    with pytest.raises(InputError, match="jpeg, png, webp"):
        decoded(encoded(picture(), kind))


def test_an_encoding_that_the_model_does_not_accept_is_refused() -> None:
    with pytest.raises(InputError, match=r"accepted are jpeg$"):
        decoded(encoded(picture(), "PNG"), encodings=("jpeg",))


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_an_animation_is_refused(kind: str) -> None:
    data = encoded(picture(), kind, save_all=True, append_images=[Image.new("RGB", (30, 20), "red")])
    with pytest.raises(InputError, match="animation"):
        decoded(data)


def test_empty_bytes_are_refused() -> None:
    with pytest.raises(InputError, match="empty"):
        decoded(b"")
