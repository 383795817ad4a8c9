"""What a sample is: the part of a declaration that learners and callers are held to."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from everlearn.spec import rules
from everlearn.spec.recipe import filled
from everlearn.spec.strict import Strict
from everlearn.values import Modality

Side = Annotated[int, Field(ge=16, le=1024)]


class Input(Strict):
    """What learners and callers send. None = as the backbone was trained, or of another modality."""

    modality: Modality = "image"
    """What a sample is: `image`, `text`, or `tensor`, plain numbers: a row of a table, a window of a time series."""
    size: Side | tuple[Side, Side] | None = None
    """image: pixels the trunk sees: a square's side, or [height, width]; 16 to 1024."""
    resize: Literal["crop", "squash"] | None = None
    """image: `crop`: shorter side to size / crop_pct, then centre crop. `squash`: straight to the size."""
    crop_pct: float | None = Field(default=None, gt=0, le=1)
    """image: share of the resized shorter side that the crop keeps."""
    interpolation: Literal["bilinear", "bicubic"] | None = None
    """image: antialiased, as Pillow does it."""
    mean: tuple[float, float, float] | None = None
    """image: per channel, of values in [0, 1]."""
    std: tuple[float, float, float] | None = None
    """image: per channel, of values in [0, 1]."""
    encodings: tuple[Literal["jpeg", "png", "webp"], ...] | None = None
    """image: files that are accepted; by default all three."""
    max_image_bytes: Annotated[int, Field(ge=1, le=4 * 2**20)] | None = None
    """image: largest file, in bytes; by default 2 MiB."""
    max_image_pixels: Annotated[int, Field(ge=1, le=2**26)] | None = None
    """image: largest decoded image, in pixels: a bomb is refused before it is decoded. By default 16,777,216; at most
    67,108,864, which take 256 MiB."""
    shape: tuple[Annotated[int, Field(ge=1)], ...] | None = None
    """tensor: sizes of one sample's axes, such as [13], or [50, 3] for 50 readings of 3 sensors."""
    range: tuple[tuple[float, float], ...] | None = None
    """tensor: usual least and greatest value in your own unit, [low, high], or a list of one such pair for each place
    of the last axis. Finite values outside are taken too: to 4 times the range they count as they are, to 64 times
    they saturate, beyond they are refused."""

    tokenizer: Annotated[str, Field(pattern=rules.HEX64)] | None = None
    """text: sha256 of the tokenizer.json that belongs to the backbone."""
    max_tokens: Annotated[int, Field(ge=8, le=8192)] | None = None
    """text: the rest of a longer text is cut off; special tokens count."""
    max_text_bytes: Annotated[int, Field(ge=1, le=2**20)] | None = None
    """text: largest text in UTF-8, in bytes; a longer one is refused before it is read. By default 8 KiB."""

    @model_validator(mode="before")
    @classmethod
    def _of_its_modality(cls, data: Any) -> Any:
        return filled(data, "modality", _MODALITIES, default="image")

    @field_validator("crop_pct")
    @classmethod
    def _only_crops_crop(cls, value: float | None, info: ValidationInfo) -> float | None:
        if value is not None and info.data.get("resize") == "squash":
            raise ValueError("squash crops nothing; leave it out, or write resize: crop")
        return value

    @field_validator("mean")
    @classmethod
    def _mean_of_unit_values(cls, value: tuple[float, float, float] | None) -> tuple[float, float, float] | None:
        rules.normalisation(value, lowest_excluded=False)
        return value

    @field_validator("std")
    @classmethod
    def _std_of_unit_values(cls, value: tuple[float, float, float] | None) -> tuple[float, float, float] | None:
        rules.normalisation(value, lowest_excluded=True)
        return value

    @field_validator("encodings")
    @classmethod
    def _some_encodings_once(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if value is not None and not value:
            raise ValueError("must name at least one of jpeg, png, webp")
        rules.unique(value or ())
        return value

    @field_validator("shape")
    @classmethod
    def _shape_of_a_tensor(cls, value: tuple[int, ...] | None, info: ValidationInfo) -> tuple[int, ...] | None:
        if value is None and info.data.get("modality") == "tensor":
            raise ValueError("is missing: sizes of one sample's axes, such as [13]")
        if value is not None:
            rules.shape(value)
        return value

    @field_validator("range", mode="before")
    @classmethod
    def _one_range_for_all(cls, value: Any) -> Any:
        plain = isinstance(value, tuple | list) and len(value) == 2
        return (tuple(value),) if plain and all(isinstance(end, int | float) for end in value) else value

    @field_validator("range")
    @classmethod
    def _range_of_a_tensor(
        cls, value: tuple[tuple[float, float], ...] | None, info: ValidationInfo
    ) -> tuple[tuple[float, float], ...] | None:
        if value is None and info.data.get("modality") == "tensor":
            raise ValueError("is missing: usual least and greatest value, such as [0, 1]")
        if value is not None and info.data.get("shape"):
            rules.ranges(value, info.data["shape"])
        return value


_MODALITIES: dict[str, dict[str, object]] = {
    "image": {
        **dict.fromkeys(("size", "resize", "crop_pct", "interpolation", "mean", "std")),
        "encodings": ("jpeg", "png", "webp"),
        "max_image_bytes": 2 * 2**20,
        "max_image_pixels": 16_777_216,
    },
    "tensor": {"shape": None, "range": None},
    "text": {"tokenizer": None, "max_tokens": None, "max_text_bytes": 8 * 2**10},
}
