"""Fills what a declaration leaves out from the backbone's own configuration, so that a plan can show all of it."""

from __future__ import annotations

from typing import Any, Protocol

from everlearn.errors import SpecError
from everlearn.spec.input import Input
from everlearn.spec.load import revalidate
from everlearn.spec.model import Model
from everlearn.values import Front, FrontConfig, Interpolation, Modality, TensorFront, TextFront

MIN_SIDE = 16
MAX_SIDE = 1024
"""Pixels; the limits of `spec.input.size`."""

NO_CROP = 1.0
"""crop_pct of a front that squashes: one value, so that equal fronts have equal digests."""


class Defaults(Protocol):
    """What a backbone says of itself; `everlearn.backbones.base.BackboneDefaults` is one."""

    @property
    def modality(self) -> Modality:
        """What it takes."""

    @property
    def architecture(self) -> str | None:
        """timm's name, where the source tells it."""

    @property
    def height(self) -> int:
        """Pixels the trunk takes by default."""

    @property
    def width(self) -> int:
        """Pixels the trunk takes by default."""

    @property
    def fixed_size(self) -> bool:
        """True where another input size is refused."""

    @property
    def crop_pct(self) -> float:
        """Share of the resized shorter side that the crop keeps."""

    @property
    def interpolation(self) -> Interpolation:
        """As the backbone was trained."""

    @property
    def mean(self) -> tuple[float, float, float]:
        """Per channel, of values in [0, 1]."""

    @property
    def std(self) -> tuple[float, float, float]:
        """Per channel, of values in [0, 1]."""

    @property
    def tokenizer(self) -> str | None:
        """text: sha256 of the tokenizer.json."""

    @property
    def max_tokens(self) -> int:
        """text: what the encoder was trained on."""

    @property
    def most_tokens(self) -> int:
        """text: what the encoder has places for."""


def complete(model: Model, defaults: Defaults) -> Model:
    """The declaration with every None of `spec.input`, and the architecture, filled in; idempotent.

    `crop_pct` stays None where `resize` is `squash`. Raises SpecError for a modality or a size that the backbone cannot
    take, and for a timm backbone of which nothing tells the architecture.
    """
    if model.spec.input.modality != defaults.modality:
        raise SpecError(
            f"the backbone takes samples of modality {defaults.modality}, not {model.spec.input.modality}; write "
            f"{defaults.modality}, or choose another backbone",
            field="spec.input.modality",
        )
    if defaults.modality == "tensor":
        return model
    backbone = model.spec.backbone.model_dump()
    if backbone["architecture"] is None and backbone["loader"] != "onnx":
        backbone["architecture"] = defaults.architecture
    if backbone["architecture"] is None and backbone["loader"] == "timm":
        raise SpecError(
            "the source does not tell its architecture; write timm's name of it, such as tf_efficientnet_lite0",
            field="spec.backbone.architecture",
        )
    fill = _text_input if defaults.modality == "text" else _input
    data = model.model_dump()
    data["spec"] |= {"backbone": backbone, "input": fill(model.spec.input, defaults)}
    return revalidate(data)


def complete_student(model: Model, defaults: Defaults) -> Model:
    """The completed declaration with the student's architecture filled in; idempotent. `defaults`: the student's.

    Raises SpecError for a student of another input size, and where nothing tells its architecture.
    """
    student = model.spec.distill_to
    assert student is not None
    size = height_width(model.spec.input)
    if defaults.fixed_size and size != (defaults.height, defaults.width):
        raise SpecError(
            f"the student takes {defaults.height} x {defaults.width} pixels only, and the model {size}; it must take "
            "the same, so choose another, or declare that size in spec.input.size",
            field="spec.distill_to.backbone",
        )
    architecture = student.backbone.architecture or defaults.architecture
    if architecture is None:
        raise SpecError(
            "the source does not tell its architecture; write timm's name of it",
            field="spec.distill_to.backbone.architecture",
        )
    data = model.model_dump()
    data["spec"]["distill_to"]["backbone"]["architecture"] = architecture
    return revalidate(data)


def student_as_model(model: Model) -> Model:
    """The student of a completed declaration as a model of its own, all of which moves: to be built and kept as one."""
    assert model.spec.distill_to is not None
    data = model.model_dump()
    data["spec"] = {
        "backbone": data["spec"]["distill_to"]["backbone"],
        "input": data["spec"]["input"],
        "adapt": {"kind": "full"},
        "head": {"kind": "linear"},
        "memory": {"kind": "none", "bits": model.spec.memory.bits},
    }
    return revalidate(data)


def _input(declared: Input, defaults: Defaults) -> dict[str, Any]:
    height, width = _size(declared, defaults)
    resize = declared.resize or "crop"
    filled = {
        "size": height if height == width else (height, width),
        "resize": resize,
        "crop_pct": defaults.crop_pct if resize == "crop" else None,
        "interpolation": defaults.interpolation,
        "mean": defaults.mean,
        "std": defaults.std,
    }
    own = {name: value for name, value in declared.model_dump().items() if value is not None and name != "size"}
    return {**filled, **own}


def _text_input(declared: Input, defaults: Defaults) -> dict[str, Any]:
    if declared.tokenizer not in (None, defaults.tokenizer):
        raise SpecError(
            f"the backbone's tokenizer.json has sha256 {defaults.tokenizer}, not {declared.tokenizer}; declare that, "
            "or leave it out",
            field="spec.input.tokenizer",
        )
    if (declared.max_tokens or 0) > defaults.most_tokens:
        raise SpecError(
            f"the encoder has places for {defaults.most_tokens} tokens, not for {declared.max_tokens}",
            field="spec.input.max_tokens",
        )
    own = {"tokenizer": defaults.tokenizer, "max_tokens": declared.max_tokens or defaults.max_tokens}
    return declared.model_dump() | own


def _size(declared: Input, defaults: Defaults) -> tuple[int, int]:
    own = (defaults.height, defaults.width)
    size = height_width(declared) or own
    if defaults.fixed_size and size != own:
        raise SpecError(
            f"the backbone takes {own[0]} x {own[1]} pixels only, not {size[0]} x {size[1]}; leave it out",
            field="spec.input.size",
        )
    if not all(MIN_SIDE <= side <= MAX_SIDE for side in size):
        advice = "choose another backbone" if defaults.fixed_size else f"declare a size of {MIN_SIDE} to {MAX_SIDE}"
        raise SpecError(
            f"the backbone's own size of {size[0]} x {size[1]} pixels is not within {MIN_SIDE} to {MAX_SIDE}; {advice}",
            field="spec.input.size",
        )
    return size


def height_width(declared: Input) -> tuple[int, int] | None:
    """The declared size in pixels as (height, width); None where it is left to the backbone."""
    return (declared.size, declared.size) if isinstance(declared.size, int) else declared.size


def front_config(model: Model) -> Front:
    """The front that a completed declaration describes. Raises SpecError where something is not filled in."""
    return front_of(model.spec.input)


def front_of(given: Input) -> Front:
    """The front that a completed `spec.input` describes. Raises SpecError where something is not filled in."""
    if given.modality == "tensor":
        assert given.shape is not None  # the declaration's own validators see to it
        assert given.range is not None
        low, high = zip(*given.range, strict=True)
        return TensorFront(shape=given.shape, low=low, high=high)
    if given.modality == "text":
        if given.tokenizer is None or given.max_tokens is None:
            raise _unfinished(given, ("tokenizer", "max_tokens"))
        return TextFront(tokenizer=given.tokenizer, max_tokens=given.max_tokens)
    return _image_front(given)


def _image_front(given: Input) -> FrontConfig:
    size = height_width(given)
    crop_pct = NO_CROP if given.resize == "squash" else given.crop_pct
    interpolation, mean, std = given.interpolation, given.mean, given.std
    if size is None or given.resize is None or crop_pct is None or interpolation is None or mean is None or std is None:
        raise _unfinished(given, ("size", "resize", "crop_pct", "interpolation", "mean", "std"))
    return FrontConfig(
        height=size[0],
        width=size[1],
        resize=given.resize,
        crop_pct=crop_pct,
        interpolation=interpolation,
        mean=mean,
        std=std,
    )


def _unfinished(given: Input, needed: tuple[str, ...]) -> SpecError:
    squashes = given.resize == "squash"
    missing = [name for name in needed if getattr(given, name) is None and not (squashes and name == "crop_pct")]
    return SpecError(
        f"not filled in: {', '.join(missing)}; complete the declaration from its backbone first",
        field=f"spec.input.{missing[0]}",
    )
