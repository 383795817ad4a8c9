"""A camera's files as the arrays that a model takes. What a picture is, is what the server would have read from it.

JPEG, PNG and WebP need Pillow, which is loaded with the first of them; `.npy` needs nothing.

Axes: H W pixels, 3 channels.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from everlearn_client.errors import InvalidArgument

if TYPE_CHECKING:
    from PIL import Image

ENCODED: Final = (".jpg", ".jpeg", ".png", ".webp")
SUFFIXES: Final = (*ENCODED, ".npy")
MAX_FILE_BYTES: Final = 32 * 2**20
MAX_PIXELS: Final = 50_000_000


@dataclass(frozen=True, eq=False)
class Read:
    """One file, read."""

    array: npt.NDArray[Any]
    """uint8 [H, W, 3], or float32 of a tensor model's shape."""
    encoded: bytes | None
    """The file itself where a server can decode it: far smaller to keep and to send than its pixels."""


def read(path: Path) -> Read:
    """Reads one file by its suffix. Raises InvalidArgument for what is no picture or array, OSError."""
    with path.open("rb") as file:
        data = file.read(MAX_FILE_BYTES + 1)
    if not data or len(data) > MAX_FILE_BYTES:
        size = "no bytes" if not data else f"more than {MAX_FILE_BYTES} bytes"
        raise InvalidArgument(f"the file has {size}; between 1 and {MAX_FILE_BYTES} are read", field="file")
    if path.suffix.lower() == ".npy":
        return Read(_array(data), None)
    return Read(_pixels(data), data)


def _array(data: bytes) -> npt.NDArray[Any]:
    try:
        array = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise InvalidArgument(f"not an .npy file that can be read: {error}", field="file") from None
    if not isinstance(array, np.ndarray) or array.dtype not in (np.uint8, np.float32):
        kind = array.dtype if isinstance(array, np.ndarray) else "an archive"
        raise InvalidArgument(f"the array is {kind}; uint8 [H, W, 3] or float32 is needed", field="file")
    return array


def _pixels(data: bytes) -> npt.NDArray[np.uint8]:
    """Turned by its EXIF, alpha dropped, 16 bits by their upper 8: as the server decodes."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data), formats=["JPEG", "PNG", "WEBP"]) as image:
            if image.width * image.height > MAX_PIXELS:
                raise InvalidArgument(
                    f"the picture is {image.width} x {image.height}; at most {MAX_PIXELS} pixels are read", field="file"
                )
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            return np.asarray(_rgb(image))
    except InvalidArgument:
        raise
    except UnidentifiedImageError:
        raise InvalidArgument("not a JPEG, PNG or WebP file", field="file") from None
    except Exception as error:  # Pillow's decoders raise whatever a broken file leads them into
        raise InvalidArgument(f"the picture is truncated or corrupt ({type(error).__name__})", field="file") from None


def _rgb(image: Image.Image) -> Image.Image:
    from PIL import Image

    if image.mode == "RGB":
        return image
    if image.mode.startswith("I"):
        upper_HW = (np.asarray(image).astype(np.uint32) >> 8).clip(0, 255)
        image = Image.fromarray(upper_HW.astype(np.uint8))
    image.info.pop("transparency", None)  # left in, Pillow warns that `convert` drops it
    return image.convert("RGB")
