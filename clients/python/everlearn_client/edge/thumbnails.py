"""Smaller pictures, made on the device with nothing but NumPy: of an image that the model reads small anyway.

Axes: H W pixels of the picture, h w of what is made of it, 3 channels.
"""

from __future__ import annotations

import math
import struct
import zlib
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from everlearn_client.errors import InvalidArgument

ImageHWC = npt.NDArray[np.uint8]
MIN_PX: Final = 8
_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
_LEVEL: Final = 6
"""Of zlib; 9 costs three times as much for two percent."""


@dataclass(frozen=True, kw_only=True)
class Resized:
    """What the model's front makes of a picture before it crops."""

    height: int
    width: int
    squash: bool
    """To exactly this; otherwise scaled to cover it, and cropped then."""

    def of(self, height: int, width: int) -> tuple[int, int]:
        """h, w of a picture; its own where that is smaller already, on either side."""
        if self.squash:
            return min(height, self.height), min(width, self.width)
        return _scaled(height, width, max(self.height / height, self.width / width))


def longest_side(height: int, width: int, side_px: int) -> tuple[int, int]:
    """h, w with the longer side of `side_px`, or its own where that is smaller."""
    return _scaled(height, width, side_px / max(height, width))


def check_image(array: npt.NDArray[np.generic]) -> None:
    """Raises InvalidArgument for what no thumbnail can be made of."""
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or not array.size:
        raise InvalidArgument(
            f"a thumbnail is made of uint8 [H, W, 3], not of {array.dtype} {list(array.shape)}", field="sample"
        )


def reduced(image_HWC: ImageHWC, height: int, width: int) -> ImageHWC:
    """Each pixel is the mean of the area that it stands for, fractions of pixels included. [height, width, 3].

    Raises InvalidArgument for what is no image, or where it would have to grow.
    """
    check_image(image_HWC)
    if not (0 < height <= image_HWC.shape[0] and 0 < width <= image_HWC.shape[1]):
        raise InvalidArgument(f"{list(image_HWC.shape)} is not made {height} x {width}: it would grow", field="sample")
    if (height, width) == image_HWC.shape[:2]:
        return image_HWC
    rows_hWC = _means(image_HWC, height)
    columns_whC = _means(np.ascontiguousarray(rows_hWC.transpose(1, 0, 2)), width)
    return np.rint(columns_whC.transpose(1, 0, 2)).astype(np.uint8)


def png(image_HWC: ImageHWC) -> bytes:
    """The same pixels as a PNG (ISO/IEC 15948), each row by the filter whose differences are smallest in sum."""
    height, width, _ = image_HWC.shape
    rows_Hb = image_HWC.reshape(height, width * 3)
    left_Hb, up_Hb, corner_Hb = (np.zeros_like(rows_Hb) for _ in range(3))
    left_Hb[:, 3:], up_Hb[1:], corner_Hb[1:, 3:] = rows_Hb[:, :-3], rows_Hb[:-1], rows_Hb[:-1, :-3]
    guesses = {0: np.zeros_like(rows_Hb), 1: left_Hb, 2: up_Hb, 4: _paeth(left_Hb, up_Hb, corner_Hb)}
    apart_FHb = np.stack([rows_Hb - guess_Hb for guess_Hb in guesses.values()])  # modulo 256, as the format has it
    cost_FH = np.abs(apart_FHb.view(np.int8).astype(np.int16)).sum(axis=2, dtype=np.int64)
    best_H = cost_FH.argmin(axis=0)
    kinds_H1 = np.array(list(guesses), np.uint8)[best_H][:, None]
    lines_Hb = np.concatenate([kinds_H1, apart_FHb[best_H, np.arange(height)]], axis=1)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(lines_Hb.tobytes(), _LEVEL)
    return _SIGNATURE + _chunk(b"IHDR", header) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def _scaled(height: int, width: int, scale: float) -> tuple[int, int]:
    """Rounded up: a front that covers a size must not find it a pixel too small."""
    if scale >= 1:
        return height, width
    return tuple(max(1, min(side, math.ceil(side * scale - 1e-9))) for side in (height, width))  # type: ignore[return-value]  # two


def _means(image_HWC: npt.NDArray[np.generic], height: int) -> npt.NDArray[np.float32]:
    """Along the first axis. Whole rows are added up, and the fractions at both ends set right: a sum of 2^16 rows of
    bytes is still exact in float32."""
    edges = np.arange(height + 1) * (image_HWC.shape[0] / height)
    first = np.floor(edges[:-1] + 1e-9).astype(np.intp)
    sums_hWC = np.add.reduceat(image_HWC, first, axis=0, dtype=np.float32)
    fractions = (np.clip(edges[:-1] - first, 0, 1)).astype(np.float32)
    before_hWC = image_HWC[first] * fractions[:, None, None]
    sums_hWC -= before_hWC
    sums_hWC[:-1] += before_hWC[1:]
    return np.asarray(sums_hWC / np.float32(image_HWC.shape[0] / height), np.float32)


def _paeth(
    left_Hb: npt.NDArray[np.uint8], up_Hb: npt.NDArray[np.uint8], corner_Hb: npt.NDArray[np.uint8]
) -> npt.NDArray[np.uint8]:
    """Whichever of the three is nearest to left + up - corner (section 9.4 of the standard)."""
    a, b, c = (each.astype(np.int16) for each in (left_Hb, up_Hb, corner_Hb))
    from_a, from_b, from_c = np.abs(b - c), np.abs(a - c), np.abs(a + b - 2 * c)
    nearest = np.where(from_b <= from_c, up_Hb, corner_Hb)
    return np.where((from_a <= from_b) & (from_a <= from_c), left_Hb, nearest)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
