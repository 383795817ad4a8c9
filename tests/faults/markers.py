"""Payloads that carry what nobody else has: 24 random bytes, in every place where raw data can hide.

A marker has three forms: letters (texts, labels, names, EXIF), bytes (pixels), and six float32 (tensors, features). The
middle of each form, its core, is the same for all markers of a run: so one search finds them all, and what is left of
one that was overwritten in part. Of the bytes there are two more: hexadecimal, and as a network reads them, which is
what becomes of an image's pixels in the decoder, in ONNX Runtime and in torch.
"""

from __future__ import annotations

import io
import zlib
from collections import Counter
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, PngImagePlugin
from tests import tiny

from everlearn.inputs.front import to_pixels

SIZE = 24
_LETTERS = np.frombuffer(b"abcdefghijklmnopqrstuvwxyz234567", np.uint8)


@dataclass(frozen=True)
class Marker:
    """One payload's own 24 bytes, in its three forms."""

    letters: bytes
    """Of 32: lower case, as names of models, clients and steps are."""
    raw: bytes
    floats: bytes
    """Six float32 in [0.5, 1), little-endian."""

    @property
    def text(self) -> str:
        """The letters."""
        return self.letters.decode()

    @property
    def values(self) -> npt.NDArray[np.float32]:
        """The floats."""
        return np.frombuffer(self.floats, "<f4").astype(np.float32)


class Markers:
    """Makes markers, and finds them again; the same for the same seed."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        self._what: dict[bytes, str] = {}
        core = self._new()
        self._cores = {"letters": core.letters[8:16], "raw": core.raw[8:16], "floats": core.floats[8:16]}
        self._cores["hex"] = self._cores["raw"].hex().encode()
        self._cores["prepared"] = _prepared(self._cores["raw"])

    def __len__(self) -> int:
        return len(self._what) // 3

    def make(self, what: str) -> Marker:
        """A new one; hits of it are counted as `what`."""
        new = self._new()
        forms = {form: (told := getattr(new, form))[:8] + self._cores[form] + told[16:] for form in vars(new)}
        self._what |= {value: f"{what}, {form}" for form, value in forms.items()}
        return Marker(**forms)

    def find(self, data: bytes) -> Counter[str]:
        """Hits, by what was marked and the form; parts of a marker are hits too."""
        found: Counter[str] = Counter()
        for form, core in self._cores.items():
            at = data.find(core)
            while at >= 0:
                found[self._what.get(data[max(at - 8, 0) : at + 16], f"a part, {form}")] += 1
                at = data.find(core, at + 1)
        return found

    def find_hex(self, text: str) -> Counter[str]:
        """Hits in hexadecimal digits, by form."""
        return Counter({form: hits for form, core in self._cores.items() if (hits := text.count(core.hex()))})

    def _new(self) -> Marker:
        random = self._random
        return Marker(
            letters=_LETTERS[random.integers(0, 32, SIZE)].tobytes(),
            raw=random.integers(1, 256, SIZE, np.uint8).tobytes(),
            floats=(0.5 + random.integers(1, 2**23, 6) / 2**24).astype("<f4").tobytes(),
        )


def pixels(marker: Marker, image_HWC: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """The image with the marker in the middle of its first row, in the red of its middle, and once more at its end."""
    marked = image_HWC.copy()
    red_N = marked[..., 0].reshape(-1)
    red_N[len(red_N) // 2 :][:SIZE] = np.frombuffer(marker.raw, np.uint8)
    marked[..., 0] = red_N.reshape(marked.shape[:2])
    flat = marked.reshape(-1)
    flat[3 : 3 + SIZE] = flat[-SIZE:] = np.frombuffer(marker.raw, np.uint8)
    return marked


def png(marker: Marker, image_HWC: npt.NDArray[np.uint8]) -> bytes:
    """A file that holds the marker as pixels (not compressed), as text, as a file name, and in EXIF."""
    told = PngImagePlugin.PngInfo()
    told.add_text("Source", f"/home/{marker.text}/holiday-{marker.text}.png")
    told.add_itxt("Description", marker.text * 3)
    stream = io.BytesIO()
    image = Image.fromarray(pixels(marker, image_HWC))
    image.save(stream, "PNG", pnginfo=told, exif=_exif(marker), compress_level=0)
    return stream.getvalue()


def jpeg(marker: Marker, image_HWC: npt.NDArray[np.uint8]) -> bytes:
    """A file with the marker in EXIF, in a comment, and behind its end."""
    stream = io.BytesIO()
    Image.fromarray(image_HWC).save(stream, "JPEG", exif=_exif(marker), comment=marker.letters)
    return stream.getvalue() + marker.raw


def broken_png(marker: Marker, image_HWC: npt.NDArray[np.uint8]) -> bytes:
    """Right until the checksum of its pixels: decoded half, then refused."""
    whole = png(marker, image_HWC)
    at = whole.index(b"IDAT")
    return whole[: at + 4] + zlib.compress(marker.raw * 40)[:-9]


def _prepared(red: bytes) -> bytes:
    """Pixels whose red is this, as float32 of the trunk's input: one channel after the other."""
    image_HWC = np.zeros((tiny.SIZE, tiny.SIZE, 3), np.uint8)
    image_HWC[0, : len(red), 0] = np.frombuffer(red, np.uint8)
    return to_pixels(image_HWC, tiny.FRONT)[0, 0, : len(red)].astype("<f4").tobytes()


def _exif(marker: Marker) -> Image.Exif:
    exif = Image.Exif()
    exif[0x010E] = marker.text  # ImageDescription
    exif[0x010D] = f"{marker.text}.jpg"  # DocumentName
    exif[0x9286] = marker.raw  # UserComment
    return exif
