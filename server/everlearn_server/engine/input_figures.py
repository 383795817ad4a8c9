"""What images look like beside what a backbone expects: a few figures of each, and nothing kept.

Axes: H W rows and columns of an image as it was sent, C its three channels.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import numpy as np

from everlearn.errors import InputError
from everlearn.inputs.image import decode
from everlearn.inputs.samples import EncodedImages, Images, Samples
from everlearn.spec.model import Model
from everlearn.values import FrontConfig, ImageHWC
from everlearn_server.engine.live_model import LiveModel

MAX_IMAGES = 256
"""In one call: figures settle long before."""


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


async def input_figures(model: LiveModel, samples: Samples) -> tuple[FrontConfig, list[ImageFigures]]:
    """The front of the model and the figures of each image, computed beside the event loop.

    Raises InputError for what is no image or too many, and for a file that cannot be decoded; PreconditionError
    (MODEL_NOT_READY).
    """
    front = model.ready_trunk.front
    if not isinstance(front, FrontConfig) or not isinstance(samples, EncodedImages | Images):
        raise InputError("only images can be looked at; send encoded_images or images", field="samples")
    if len(samples) > MAX_IMAGES:
        raise InputError(f"{len(samples)} images; at most {MAX_IMAGES} a call", field="samples")
    return front, await asyncio.to_thread(_of_all, samples, model.spec)


def _of_all(samples: EncodedImages | Images, spec: Model) -> list[ImageFigures]:
    if isinstance(samples, Images):
        return [_of_one(image_HWC, f"samples.images[{row}]") for row, image_HWC in enumerate(samples.images_BHWC)]
    declared, figures = spec.spec.input, []
    for row, file in enumerate(samples.files):
        field = f"samples.encoded_images.images[{row}]"
        image_HWC = decode(
            file,
            encodings=declared.encodings or (),
            max_bytes=declared.max_image_bytes or 0,
            max_pixels=declared.max_image_pixels or 0,
            field=field,
        )
        figures.append(_of_one(image_HWC, field))
    return figures


def _of_one(image_HWC: ImageHWC, field: str) -> ImageFigures:
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
