"""Image files are read by confined processes, with the same pixels and refusals as in the server itself."""

from __future__ import annotations

import io
import os
import re
import signal
import threading
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from everlearn.errors import InputError, InvalidError, UnavailableError
from everlearn.inputs.decoding import DecodingApart, DecodingHere, ImageLimits
from everlearn.values import FrontConfig

FRONT = FrontConfig(height=64, width=48, crop_pct=1.0)
LIMITS = ImageLimits(encodings=("jpeg", "png", "webp"), max_bytes=2**20, max_pixels=16_777_216)
FIELD = "samples.encoded_images.images[3]"


def file(kind: str, *, height: int = 90, width: int = 70, **options: object) -> bytes:
    stream = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(noise).save(stream, kind, **options)
    return stream.getvalue()


@pytest.fixture(scope="module")
def apart() -> Iterator[DecodingApart]:
    decoding = DecodingApart(2)
    yield decoding
    decoding.close()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_pixels_and_figures_are_those_of_decoding_here(apart: DecodingApart, kind: str) -> None:
    here, data = DecodingHere(), file(kind)
    pixels = apart.pixels(data, FRONT, LIMITS, field=FIELD)
    assert pixels.shape == (3, 64, 48)
    assert (pixels == here.pixels(data, FRONT, LIMITS, field=FIELD)).all()
    assert apart.figures(data, LIMITS, field=FIELD) == here.figures(data, LIMITS, field=FIELD)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"nothing",
        file("PNG")[:-40],
        file("PNG", height=4200, width=4200, compress_level=9)[:900_000],
        bytes(2**21),
    ],
    ids=["empty", "no image", "cut off", "too many pixels", "too many bytes"],
)
def test_refusals_are_those_of_decoding_here(apart: DecodingApart, data: bytes) -> None:
    with pytest.raises(InvalidError) as here:
        DecodingHere().pixels(data, FRONT, LIMITS, field=FIELD)
    with pytest.raises(type(here.value), match=re.escape(here.value.message)) as there:
        apart.pixels(data, FRONT, LIMITS, field=FIELD)
    assert there.value.field == FIELD


def test_nothing_of_an_image_stays_in_the_shared_memory(apart: DecodingApart) -> None:
    apart.pixels(file("PNG"), FRONT, LIMITS, field=FIELD)
    with pytest.raises(InputError):
        apart.pixels(file("PNG")[:-40], FRONT, LIMITS, field=FIELD)
    assert apart._idle
    assert not any(any(decoder._shared[:]) for decoder in apart._idle)


def test_a_decoder_that_was_killed_is_replaced_and_the_image_is_decoded(apart: DecodingApart) -> None:
    data = file("JPEG")
    before = apart.pixels(data, FRONT, LIMITS, field=FIELD)
    for decoder in apart._idle:
        os.kill(decoder._pid, signal.SIGKILL)
    assert (apart.pixels(data, FRONT, LIMITS, field=FIELD) == before).all()


def test_a_nursery_that_was_killed_is_replaced(apart: DecodingApart) -> None:
    data = file("JPEG")
    apart.pixels(data, FRONT, LIMITS, field=FIELD)
    assert apart._nursery is not None
    apart._nursery._process.kill()
    apart._nursery._process.wait()
    for decoder in apart._idle:
        os.kill(decoder._pid, signal.SIGKILL)
    apart.pixels(data, FRONT, LIMITS, field=FIELD)


def test_an_image_that_takes_too_long_costs_its_decoders_and_nothing_else(apart: DecodingApart) -> None:
    hurried = DecodingApart(1, timeout_s=1e-6)
    with pytest.raises(InputError, match="ended its decoder") as error:
        hurried.pixels(file("PNG", height=500, width=500), FRONT, LIMITS, field=FIELD)
    assert error.value.field == FIELD
    assert not hurried._idle
    hurried.close()
    apart.pixels(file("PNG"), FRONT, LIMITS, field=FIELD)


def test_threads_share_the_decoders(apart: DecodingApart) -> None:
    data = [file("PNG", height=40 + row) for row in range(6)]
    wanted = [DecodingHere().pixels(one, FRONT, LIMITS, field=FIELD) for one in data]
    got: dict[int, bool] = {}

    def work(row: int) -> None:
        got[row] = bool((apart.pixels(data[row], FRONT, LIMITS, field=FIELD) == wanted[row]).all())

    threads = [threading.Thread(target=work, args=(row,)) for row in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == dict.fromkeys(range(6), True)


def test_what_confines_the_decoders_is_told_once() -> None:
    told: list[str] = []
    decoding = DecodingApart(1, tell=told.append)
    for _ in range(2):
        decoding.pixels(file("PNG"), FRONT, LIMITS, field=FIELD)
    decoding.close()
    assert len(told) == 1
    with pytest.raises(UnavailableError):
        decoding.pixels(file("PNG"), FRONT, LIMITS, field=FIELD)
