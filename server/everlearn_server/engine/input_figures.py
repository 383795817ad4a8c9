"""What images look like beside what a backbone expects: a few figures of each, and nothing kept."""

from __future__ import annotations

import asyncio

from everlearn.errors import InputError
from everlearn.inputs.decoding import ImageDecoding
from everlearn.inputs.figures import ImageFigures, figures_of
from everlearn.inputs.samples import EncodedImages, Images, Samples
from everlearn.spec.model import Model
from everlearn.values import FrontConfig
from everlearn_server.engine.decode import limits_of
from everlearn_server.engine.live_model import LiveModel

MAX_IMAGES = 256
"""In one call: figures settle long before."""


async def input_figures(
    model: LiveModel, samples: Samples, images: ImageDecoding
) -> tuple[FrontConfig, list[ImageFigures]]:
    """The front of the model and the figures of each image, computed beside the event loop.

    Raises InputError for what is no image or too many, and for a file that cannot be decoded; PreconditionError
    (MODEL_NOT_READY).
    """
    front = model.ready_trunk.front
    if not isinstance(front, FrontConfig) or not isinstance(samples, EncodedImages | Images):
        raise InputError("only images can be looked at; send encoded_images or images", field="samples")
    if len(samples) > MAX_IMAGES:
        raise InputError(f"{len(samples)} images; at most {MAX_IMAGES} a call", field="samples")
    return front, await asyncio.to_thread(_of_all, samples, model.spec, images)


def _of_all(samples: EncodedImages | Images, spec: Model, images: ImageDecoding) -> list[ImageFigures]:
    if isinstance(samples, Images):
        return [
            figures_of(image_HWC, field=f"samples.images[{row}]") for row, image_HWC in enumerate(samples.images_BHWC)
        ]
    limits = limits_of(spec.spec.input)
    return [
        images.figures(file, limits, field=f"samples.encoded_images.images[{row}]")
        for row, file in enumerate(samples.files)
    ]
