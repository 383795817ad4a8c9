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
MAX_SCANS = 100
"""Of one JPEG file. A progressive one has about ten; each goes over the whole picture, and takes twenty bytes."""
MAX_TEXTS = 16
"""Compressed texts in one PNG file, each of which Pillow unpacks to a megabyte at most."""
MAX_PARTS = 4096
"""Chunks of a PNG file, segments of a JPEG file; Python looks at each. PNG writers put 8 KiB into one."""
_COMPRESSED_TEXTS = (b"zTXt", b"iTXt", b"iCCP")


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
    check_size(data, max_bytes=max_bytes, field=field)
    _check_repeats(data, field)
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


def _check_repeats(data: bytes, field: str) -> None:
    """Refuses what costs more time or memory than its pixels. Looked for before any library sees the file."""
    counts: dict[str, tuple[int, int]] = {}
    if data.startswith(b"\xff\xd8"):
        counts = {"scans": (_jpeg_scans(data), MAX_SCANS), "segments": (_jpeg_segments(data), MAX_PARTS)}
    elif data.startswith(b"\x89PNG"):
        kinds = _png_kinds(data)
        texts = sum(kind in _COMPRESSED_TEXTS for kind in kinds)
        counts = {"compressed texts": (texts, MAX_TEXTS), "chunks": (len(kinds), MAX_PARTS)}
    for what, (count, most) in counts.items():
        if count > most:
            raise PayloadTooLargeError(
                f"the image has {count} {what} or more; at most {most} are accepted: encode it anew", field=field
            )


def _png_kinds(data: bytes) -> list[bytes]:
    """Kinds of a file's chunks: length, kind, data, checksum."""
    at, kinds = 8, list[bytes]()
    while at + 8 <= len(data) and len(kinds) <= MAX_PARTS:
        kinds.append(data[at + 4 : at + 8])
        at += 12 + int.from_bytes(data[at : at + 4], "big")
    return kinds


def _jpeg_scans(data: bytes) -> int:
    """Markers FF DA: in the data of a scan, an FF is never followed by DA. 9 us for 30 KB."""
    bytes_N = np.frombuffer(data, np.uint8)
    marks = np.flatnonzero(bytes_N[:-1] == 0xFF)
    return int((bytes_N[marks + 1] == 0xDA).sum())


def _jpeg_segments(data: bytes) -> int:
    """Segments before the first scan: a marker, a length, as many bytes."""
    at, count = 2, 0
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != 0xDA and count <= MAX_PARTS:
        # A marker may be led by any number of bytes 0xFF.
        at += 1 if data[at + 1] == 0xFF else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        count += 1
    return count


def check_size(data: bytes, *, max_bytes: int, field: str) -> None:
    """Raises InputError for an empty file, PayloadTooLargeError for one of more than `max_bytes`."""
    if not data:
        raise InputError("the image is empty; send the bytes of an image file", field=field)
    if len(data) > max_bytes:
        raise PayloadTooLargeError(f"the image has {len(data)} bytes; at most {max_bytes} are accepted", field=field)


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
