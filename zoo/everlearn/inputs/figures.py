"""A few figures of an image as it was sent, and nothing kept of it.

Axes: H W rows and columns, C the three channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from everlearn.errors import InputError
from everlearn.values import ImageHWC


@dataclass(frozen=True, kw_only=True)
class ImageFigures:
    """Of one decoded image before it is resized; values in [0, 1]."""

    height: int
    width: int
    mean: float
    std: float
    least: float
    greatest: float
    colour: float
    """Mean over the pixels of the largest channel less the smallest; 0 without colour."""


def figures_of(image_HWC: ImageHWC, *, field: str) -> ImageFigures:
    """Raises InputError for what has not the shape of an image."""
    if image_HWC.ndim != 3 or image_HWC.shape[2] != 3 or not image_HWC.size:
        raise InputError(f"shape {list(image_HWC.shape)} is no image; it must be [H, W, 3]", field=field)
    spread_HW = image_HWC.max(axis=2).astype(np.float32) - image_HWC.min(axis=2)
    return ImageFigures(
        height=image_HWC.shape[0],
        width=image_HWC.shape[1],
        mean=float(image_HWC.mean()) / 255,
        std=float(image_HWC.std()) / 255,
        least=float(image_HWC.min()) / 255,
        greatest=float(image_HWC.max()) / 255,
        colour=float(spread_HW.mean()) / 255,
    )
