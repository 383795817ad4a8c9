"""From samples in any form to what the trunk or the head takes: cheap checks up front, then one sample at a time.

`check` looks at shapes, types and finiteness and touches no image, so it may run where the message was parsed.
`decode_one` prepares one sample for the trunk; it releases the interpreter lock most of the time, so threads may share
a batch, each writing its own row.

Axes: B samples, H W of the source, h w of the trunk, d features.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from everlearn.errors import EverlearnError, InputError, PayloadTooLargeError
from everlearn.inputs.front import PixelsCHW, pixels_of, to_pixels
from everlearn.inputs.image import open_rgb
from everlearn.inputs.samples import EncodedImages, Features, Images, Pixels, Raw, Samples, Tensors, Texts
from everlearn.inputs.text import TextTokenizer, check_text
from everlearn.spec.input import Input
from everlearn.values import Front, FrontConfig, TensorFront, TextFront, TrunkInput

FORM_NAMES: dict[type[Samples], str] = {
    EncodedImages: "encoded_images",
    Images: "images",
    Pixels: "pixels",
    Tensors: "tensors",
    Texts: "texts",
    Features: "features",
}
"""Form -> its name in messages and error paths."""


def check(samples: Samples, *, front: Front, declared: Input, feature_dim: int, field: str = "samples") -> None:
    """Refuses what can be refused without decoding.

    Raises InputError or PayloadTooLargeError, naming the field below `field`, e.g. `samples.pixels`. An empty batch of
    the right form is right.
    """
    field = f"{field}.{FORM_NAMES[type(samples)]}"
    if isinstance(samples, Features):
        _check_floats(samples.features_Bd, (feature_dim,), "[N, feature_dim]", field)
    elif isinstance(front, TensorFront):
        if not isinstance(samples, Tensors):
            raise InputError(f"the model takes tensors {['N', *front.shape]}; send tensors", field=field)
        _check_floats(samples.values_B, front.shape, "[N, *shape]", field)
    elif isinstance(front, TextFront):
        if not isinstance(samples, Texts):
            raise InputError("the model takes texts; send texts", field=field)
        for index, text in enumerate(samples.texts):
            check_text(text, max_bytes=declared.max_text_bytes or 0, field=f"{field}.texts[{index}]")
    else:
        _check_image_form(samples, front, declared, field)


def decode_one(
    samples: Raw,
    index: int,
    *,
    front: Front,
    declared: Input,
    tokenizer: TextTokenizer | None = None,
    out: PixelsCHW | None = None,
    field: str = "samples",
) -> TrunkInput:
    """One sample of a checked batch as the trunk takes it: float32 [3, h, w] or [*shape], or token ids int64 [L].

    Arrays are written into `out` where given. `tokenizer`: of the model's text front.

    Raises InputError or PayloadTooLargeError that names the sample, e.g. `samples.encoded_images.images[3]`.
    """
    if isinstance(samples, Texts):
        assert tokenizer is not None  # every trunk of texts brings one
        return _tokens(samples, index, tokenizer, f"{field}.texts.texts[{index}]")
    if isinstance(samples, Pixels | Tensors):
        values = samples.pixels_BCHW if isinstance(samples, Pixels) else samples.values_B
        if out is None:
            return values[index]  # type: ignore[no-any-return]  # numpy's stubs: an item of any array
        np.copyto(out, values[index])
        return out
    assert isinstance(front, FrontConfig)  # `check` has seen to it
    if isinstance(samples, Images):
        return _named(f"{field}.images[{index}]", samples.images_BHWC[index], front, out)
    return _decoded(samples, index, front, declared, out, f"{field}.encoded_images.images[{index}]")


def _tokens(samples: Texts, index: int, tokenizer: TextTokenizer, name: str) -> TrunkInput:
    ids_L = tokenizer.ids(samples.texts[index])
    if not len(ids_L):
        raise InputError("the text has no token of the model's vocabulary; send another", field=name)
    return ids_L


def _decoded(
    samples: EncodedImages, index: int, front: FrontConfig, declared: Input, out: PixelsCHW | None, name: str
) -> PixelsCHW:
    assert declared.encodings is not None  # every image declaration has these three
    assert declared.max_image_bytes is not None
    assert declared.max_image_pixels is not None
    image = open_rgb(
        samples.files[index],
        encodings=declared.encodings,
        max_bytes=declared.max_image_bytes,
        max_pixels=declared.max_image_pixels,
        field=name,
    )
    try:
        return pixels_of(image, front, out)
    except EverlearnError as error:
        error.field = error.field or name
        raise


def _check_image_form(
    samples: EncodedImages | Images | Pixels | Tensors | Texts, front: FrontConfig, declared: Input, field: str
) -> None:
    match samples:
        case EncodedImages():
            _check_files(samples, declared.max_image_bytes or 0, f"{field}.images")
        case Images(images_BHWC=images):
            _check_images(images, declared.max_image_pixels or 0, field)
        case Pixels(pixels_BCHW=pixels):
            _check_floats(pixels, (3, front.height, front.width), "[N, 3, height, width]", field)
        case Tensors() | Texts():
            raise InputError("the model takes images; send encoded_images, images or pixels", field=field)


def _named(name: str, image_HWC: npt.NDArray[np.uint8], front: FrontConfig, out: PixelsCHW | None) -> PixelsCHW:
    try:
        return to_pixels(image_HWC, front, out)
    except EverlearnError as error:
        error.field = error.field or name
        raise


def _check_files(samples: EncodedImages, max_bytes: int, field: str) -> None:
    for index, data in enumerate(samples.files):
        if not data:
            raise InputError("the image is empty; send the bytes of an image file", field=f"{field}[{index}]")
        if len(data) > max_bytes:
            raise PayloadTooLargeError(
                f"the image has {len(data)} bytes; at most {max_bytes} are accepted",
                field=f"{field}[{index}]",
            )


def _check_images(images: npt.NDArray[np.uint8], max_pixels: int, field: str) -> None:
    if images.dtype != np.uint8:
        raise InputError(f"images must be uint8, not {images.dtype}", field=field)
    if images.ndim != 4 or images.shape[3] != 3 or 0 in images.shape[1:3]:
        raise InputError(f"images must be [N, H, W, 3] with H, W > 0, not {list(images.shape)}", field=field)
    pixels = images.shape[1] * images.shape[2]
    if pixels > max_pixels:
        raise PayloadTooLargeError(f"an image has {pixels} pixels; at most {max_pixels} are accepted", field=field)


def _check_floats(rows: npt.NDArray[np.float32], tail: tuple[int, ...], axes: str, field: str) -> None:
    name = field.rpartition(".")[2]
    if rows.dtype != np.float32:
        raise InputError(f"{name} must be float32, not {rows.dtype}", field=field)
    if rows.ndim != 1 + len(tail) or rows.shape[1:] != tail:
        raise InputError(f"{name} must be {axes} = {['N', *tail]}, not {list(rows.shape)}", field=field)
    # A sum of squares is finite only if all terms are, and BLAS makes it far sooner than a sum or a mask. It may
    # overflow where all are finite, so the mask decides.
    if not np.isfinite(np.vdot(rows, rows)):
        finite_B = np.isfinite(rows).all(axis=tuple(range(1, rows.ndim)))
        if not finite_B.all():
            index = int(np.argmin(finite_B))
            raise InputError(f"{name} must be finite; sample {index} holds NaN or infinity", field=f"{field}[{index}]")
