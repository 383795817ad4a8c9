"""From an image of any size to the pixels a trunk takes: the fast form of the front that every export carries.

The reference is timm's evaluation transform (`transforms_imagenet_eval`, crop modes `center` and `squash`), which rests
on torchvision's Resize and CenterCrop and on Pillow's antialiased filters. The same arithmetic as an ONNX graph is in
`everlearn.export.front`; a test holds the two within 3 grey levels of each other.

Axes: H W height and width of the source, C 3 channels RGB; h w of the trunk.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from everlearn.errors import InputError
from everlearn.values import FrontConfig, ImageHWC

PixelsCHW = npt.NDArray[np.float32]

_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_SUPPORT = {"bilinear": 1.0, "bicubic": 2.0}
"""Reach of a filter to each side, in pixels of the coarser grid."""
_MAX_BUFFER_PIXELS = 1 << 25
"""Largest image between the two passes: 128 MiB in Pillow."""


@dataclass(frozen=True, kw_only=True)
class Fit:
    """What the front resizes a source to, and where it then crops; all in pixels."""

    height: int
    width: int
    top: int
    left: int


def fit_of(source_height: int, source_width: int, front: FrontConfig) -> Fit:
    """Sizes for one source.

    >>> fit_of(480, 640, FrontConfig(height=224, width=224))
    Fit(height=256, width=341, top=16, left=58)
    """
    if front.resize == "squash":
        return Fit(height=front.height, width=front.width, top=0, left=0)
    target_height, target_width = crop_targets(front)
    if source_height * target_width <= source_width * target_height:
        height, width = target_height, _share(source_width, target_height, source_height, front)
    else:
        height, width = _share(source_height, target_width, source_width, front), target_width
    # Python's round, half to even, is part of torchvision's CenterCrop.
    return Fit(
        height=height, width=width, top=round((height - front.height) / 2), left=round((width - front.width) / 2)
    )


def crop_targets(front: FrontConfig) -> tuple[int, int]:
    """Height and width that the source is scaled to cover before the crop, rounded down as timm does."""
    return math.floor(front.height / front.crop_pct), math.floor(front.width / front.crop_pct)


def normaliser(front: FrontConfig) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Per channel factor and offset, float32 [3] each: pixel = grey level * factor + offset."""
    mean, std = np.array(front.mean), np.array(front.std)
    return (1 / (255 * std)).astype(np.float32), (-mean / std).astype(np.float32)


def resize(image: Image.Image, front: FrontConfig) -> Image.Image:
    """Resizes and crops an RGB image to the trunk's size.

    Rows first, then columns, always: Pillow 13 chooses the order by cost, which moves pixels by many grey levels
    (the first pass clips overshoots), while older Pillows and ONNX Runtime keep this one. Only the part that the crop
    keeps is computed, with the same filter at the same positions.

    Raises InputError for an image so long and thin that the first pass would need a huge buffer.
    """
    fit = fit_of(image.height, image.width, front)
    left, right = (column * image.width / fit.width for column in (fit.left, fit.left + front.width))
    top, bottom = (row * image.height / fit.height for row in (fit.top, fit.top + front.height))
    reach = _SUPPORT[front.interpolation] * max(1.0, image.height / fit.height) + 1
    first, last = max(0, math.floor(top - reach)), min(image.height, math.ceil(bottom + reach))
    if (last - first) * front.width > _MAX_BUFFER_PIXELS:
        raise InputError(
            f"an image of {image.width} x {image.height} pixels is too thin to be squashed to {front.width} x "
            f"{front.height}; its height may be at most {_MAX_BUFFER_PIXELS // front.width}"
        )
    kept = image if (first, last) == (0, image.height) else image.crop((0, first, image.width, last))
    filter_ = _FILTERS[front.interpolation]
    wide = kept.resize((front.width, kept.height), filter_, box=(left, 0, right, kept.height))
    return wide.resize((front.width, front.height), filter_, box=(0, top - first, front.width, bottom - first))


def normalise(image_hwC: ImageHWC, front: FrontConfig, out: PixelsCHW | None = None) -> PixelsCHW:
    """Grey levels to normalised pixels, channels first; written into `out` where given."""
    if out is None:
        out = np.empty((3, *image_hwC.shape[:2]), np.float32)
    factor_C, offset_C = normaliser(front)
    np.multiply(image_hwC.transpose(2, 0, 1), factor_C[:, None, None], out=out)
    out += offset_C[:, None, None]
    return out


def to_pixels(image_HWC: ImageHWC, front: FrontConfig, out: PixelsCHW | None = None) -> PixelsCHW:
    """Resizes, crops and normalises one image; float32 [3, h, w], written into `out` where given.

    Raises InputError if it is not uint8 [H, W, 3] with H, W > 0.

    >>> to_pixels(np.zeros((480, 640, 3), np.uint8), FrontConfig(height=224, width=224)).shape
    (3, 224, 224)
    """
    if image_HWC.dtype != np.uint8 or image_HWC.ndim != 3 or image_HWC.shape[2] != 3 or 0 in image_HWC.shape:
        raise InputError(f"an image must be uint8 [H, W, 3], not {image_HWC.dtype} {list(image_HWC.shape)}")
    return pixels_of(Image.fromarray(image_HWC), front, out)


def pixels_of(image: Image.Image, front: FrontConfig, out: PixelsCHW | None = None) -> PixelsCHW:
    """`to_pixels` for an image that Pillow holds already, in mode RGB."""
    return normalise(np.asarray(resize(image, front)), front, out)


def _share(side: int, target: int, fitted: int, front: FrontConfig) -> int:
    """What becomes of `side` when the side `fitted` becomes `target`.

    Rounded down for a square target (torchvision's Resize), half to even for another (timm's ResizeKeepRatio). Exact:
    the sides are far too small for a float64 quotient to be rounded across an integer or onto a half.
    """
    square = front.height == front.width
    return side * target // fitted if square else round(side * target / fitted)
