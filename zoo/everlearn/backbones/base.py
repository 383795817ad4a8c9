"""What a loader is: it turns verified files into a trunk."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from everlearn.spec.model import Backbone
from everlearn.values import BackboneFiles, FrontConfig, Interpolation, Trunk


@dataclass(frozen=True, kw_only=True)
class BackboneDefaults:
    """What a backbone says of itself; fills in what a declaration leaves out."""

    architecture: str | None
    height: int
    width: int
    fixed_size: bool
    """True where another input size is refused."""
    crop_pct: float
    interpolation: Interpolation
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
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
    def build(self, backbone: Backbone, files: BackboneFiles, front: FrontConfig, *, bits: int) -> Trunk:
        """Loads the weights strictly, cuts the classifier off, exports, and verifies against the source model.

        Raises BackboneError.
        """
