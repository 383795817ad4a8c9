"""From an image file to RGB pixels. The last place that sees raw bytes, and the first that distrusts them.

What comes out is what `Image.convert("RGB")` of a plain decoder gives, so that a device that decodes by itself sees the
same grey levels: the EXIF orientation is applied, alpha is dropped (not composited), palettes are looked up, CMYK and
grey become RGB, and 16-bit channels keep their upper 8 bits.
"""

from __future__ import annotations

import io
from collections.abc import Iterable

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from everlearn.errors import EverlearnError, InputError, PayloadTooLargeError
from everlearn.values import ImageHWC

_FORMATS = {"jpeg": "JPEG", "png": "PNG", "webp": "WEBP"}


def decode(data: bytes, *, encodings: Iterable[str], max_bytes: int, max_pixels: int, field: str) -> ImageHWC:
    """uint8 [H, W, 3] RGB of one JPEG, PNG or WebP file.

    Raises PayloadTooLargeError for more than `max_bytes` or `max_pixels` (known from the header, before anything is
    decoded), and InputError for an encoding that is not in `encodings`, a truncated or corrupt file, or an animation.
    """
    image = open_rgb(data, encodings=encodings, max_bytes=max_bytes, max_pixels=max_pixels, field=field)
    return np.asarray(image)


def open_rgb(data: bytes, *, encodings: Iterable[str], max_bytes: int, max_pixels: int, field: str) -> Image.Image:
    """As `decode`, but leaves the pixels with Pillow, in mode RGB."""
    encodings = tuple(encodings)
    if not data:
        raise InputError("the image is empty; send the bytes of an image file", field=field)
    if len(data) > max_bytes:
        raise PayloadTooLargeError(f"the image has {len(data)} bytes; at most {max_bytes} are accepted", field=field)
    try:
        with Image.open(io.BytesIO(data), formats=[_FORMATS[name] for name in encodings]) as image:
            _check_header(image, max_pixels, field)
            image.load()
            ImageOps.exif_transpose(image, in_place=True)  # not in place, it copies every image that needs no turn
            return _to_rgb(image)
    except EverlearnError:
        raise
    except UnidentifiedImageError:
        raise InputError(f"not an image file; accepted are {', '.join(encodings)}", field=field) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise PayloadTooLargeError(f"the image has more than {max_pixels} pixels", field=field) from None
    # Pillow's decoders raise whatever a broken file leads them into: OSError, SyntaxError, ValueError, struct.error.
    except Exception as error:
        raise InputError(
            f"the image file is truncated or corrupt ({type(error).__name__}); send the whole file", field=field
        ) from None


def _check_header(image: Image.Image, max_pixels: int, field: str) -> None:
    if image.width * image.height > max_pixels:
        raise PayloadTooLargeError(
            f"the image is {image.width} x {image.height} = {image.width * image.height} pixels; at most {max_pixels} "
            "are accepted",
            field=field,
        )
    # Phones write JPEGs with a preview or a depth map behind the picture; the first frame is the picture.
    if image.format in ("PNG", "WEBP") and getattr(image, "n_frames", 1) > 1:
        raise InputError("the image is an animation; send one frame", field=field)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I"):
        upper_HW = (np.asarray(image).astype(np.uint32) >> 8).clip(0, 255)
        image = Image.fromarray(upper_HW.astype(np.uint8))
    # Left in, it makes Pillow warn at every palette image that `convert` drops it.
    image.info.pop("transparency", None)
    return image.convert("RGB")
