"""What a loader is: it turns verified files into a trunk."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

from everlearn.backbones.tail import Tail
from everlearn.errors import BackboneError, IntegrityError
from everlearn.spec.model import Backbone
from everlearn.values import BackboneFiles, Front, FrontConfig, Interpolation, Modality, Trunk

if TYPE_CHECKING:  # a module of torch's, which not every loader needs
    from everlearn.backbones.cut import TailModule


@dataclass(frozen=True, kw_only=True)
class BackboneDefaults:
    """What a backbone says of itself; fills in what a declaration leaves out. Sizes and levels are of images only."""

    modality: Modality = "image"
    """What it takes."""
    architecture: str | None
    height: int = 0
    width: int = 0
    fixed_size: bool = False
    """True where another input size is refused."""
    crop_pct: float = 0.875
    interpolation: Interpolation = "bicubic"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    tokenizer: str | None = None
    """text: sha256 of the tokenizer.json."""
    max_tokens: int = 0
    """text: what the encoder was trained on; what is longer is cut off."""
    most_tokens: int = 0
    """text: what the encoder has places for; more is refused."""
    feature_dim: int | None
    """None where only building tells."""
    licence: str | None


class Loader(ABC):
    """Files -> Trunk. One file in this folder each; found by its name.

    Runs in a child process (`everlearn.backbones.child`), so it may load torch and may be killed.
    """

    @abstractmethod
    def describe(self, backbone: Backbone, files: BackboneFiles | None) -> BackboneDefaults:
        """Defaults from the files' configuration, or from the architecture's name alone where `files` is None.

        Raises BackboneError for an unknown architecture.
        """

    @abstractmethod
    def build(self, backbone: Backbone, files: BackboneFiles, front: Front, *, bits: int) -> Trunk:
        """Loads the weights strictly, cuts the classifier off, exports, and verifies against the source model.

        Raises BackboneError.
        """

    def build_cut(
        self, backbone: Backbone, files: BackboneFiles, front: Front, *, bits: int, blocks: int | None
    ) -> tuple[Trunk, Tail]:
        """As `build`, in two: the last `blocks` blocks are a tail that may learn; None gives it the whole network.

        The trunk's features are the values at the cut, flat. Raises BackboneError, also where this loader cannot cut.
        """
        raise BackboneError(
            f"loader {backbone.loader} cannot cut a network; write adapt: frozen, or load it by timm or transformers, "
            "or of tensors by mlp",
            field="spec.recipe.adapt",
        )

    def rebuild(self, tail: Tail) -> TailModule:
        """The torch module that a tail of `build_cut` stands for, with whatever weights: what `load_weights` fills.

        Raises BackboneError where the installed libraries make another network of it.
        """
        raise BackboneError(f"{type(self).__name__} cuts no network, so {tail.architecture} is no tail of it")


def image_front(front: Front) -> FrontConfig:
    """The front, of images. Raises BackboneError for any other."""
    if not isinstance(front, FrontConfig):
        raise BackboneError("the backbone takes images; write modality: image", field="spec.input.modality")
    return front


def weights_name(backbone: Backbone, files: BackboneFiles) -> str:
    """Which of the files holds the weights: `backbone.file`, or the only one of the declared format.

    Raises BackboneError if there is none, or a choice.
    """
    if backbone.file is not None and backbone.file in files.paths:
        return backbone.file
    endings = {"safetensors": (".safetensors",), "onnx": (".onnx",), "torch": (".pth", ".pt", ".bin", ".ckpt")}
    found = sorted(name for name in files.paths if name.endswith(endings[backbone.format]))
    # In a source of one file its ending may be anything: the digest says which file it is.
    if not found and len(files.paths) == 1:
        found = sorted(files.paths)
    if len(found) != 1:
        raise BackboneError(
            f"{files.source} has {len(found)} files of format {backbone.format} {found[:5]}; name one in `file`",
            field="spec.backbone.file",
        )
    return found[0]


def read_verified(files: BackboneFiles, name: str) -> bytes:
    """A file's bytes, held against its sha256 once more: between hub and loader lie a disk and a process.

    Raises IntegrityError.
    """
    data = files.paths[name].read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if found != files.sha256[name]:
        raise IntegrityError(f"{name} is {found}, it was verified as {files.sha256[name]}; fetch it again")
    return data


def provenance_of(backbone: Backbone, files: BackboneFiles) -> dict[str, str]:
    """What every trunk tells of its source."""
    digests = {f"sha256:{name}": digest for name, digest in sorted(files.sha256.items())}
    return {"source": files.source, "revision": files.revision, "loader": backbone.loader, **digests}
