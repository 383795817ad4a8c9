"""Values that flow between rooms. All are frozen; arrays in them are read-only by convention.

Axes: B samples in a batch, C classes, d features, H W height and width in pixels.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from everlearn.errors import InputError

FeaturesBd = npt.NDArray[np.float32]
QuantisedBd = npt.NDArray[np.int16]
PixelsBCHW = npt.NDArray[np.float32]
ImageHWC = npt.NDArray[np.uint8]
TrunkInput = npt.NDArray[np.float32 | np.int64]
"""What a trunk takes: pixels [B, 3, H, W] or values [B, *shape], float32, or token ids [B, L], int64."""

Interpolation = Literal["bilinear", "bicubic"]
Resize = Literal["crop", "squash"]
Modality = Literal["image", "tensor", "text"]
"""What a sample is."""
Task = Literal["classification", "multilabel", "regression"]
"""What is predicted of a sample: one label, a set of labels, or a value for each output."""


@dataclass(frozen=True, kw_only=True)
class FrontConfig:
    """How an image of any size becomes the trunk's pixels: resize, crop, scale to [0, 1], normalise, NCHW."""

    height: int
    """Pixels the trunk takes."""
    width: int
    """Pixels the trunk takes."""
    resize: Resize = "crop"
    """`crop`: shorter side to size / crop_pct, then centre crop (timm's evaluation). `squash`: straight to the size."""
    crop_pct: float = 0.875
    """Share of the resized shorter side that the crop keeps; only for `crop`."""
    interpolation: Interpolation = "bicubic"
    """Antialiased, as Pillow does it."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Per channel, of values in [0, 1]."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Per channel, of values in [0, 1]."""

    @property
    def digest(self) -> str:
        """sha256 of the canonical JSON."""
        return _digest(asdict(self))

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Of one sample as the trunk takes it."""
        return (3, self.height, self.width)


@dataclass(frozen=True, kw_only=True)
class TensorFront:
    """What a plain tensor is: its shape and its values' declared range. Nothing is done to it before the trunk."""

    shape: tuple[int, ...]
    """Of one sample."""
    low: tuple[float, ...]
    """Usual least value, in the user's own unit: one for all, or one for each place of the last axis."""
    high: tuple[float, ...]
    """Usual greatest value, as `low`."""

    @property
    def digest(self) -> str:
        """sha256 of the canonical JSON."""
        return _digest({"modality": "tensor", **asdict(self)})

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Of one sample as the trunk takes it."""
        return self.shape


@dataclass(frozen=True, kw_only=True)
class TextFront:
    """How a text becomes token ids."""

    tokenizer: str
    """sha256 of the tokenizer.json that the trunk brings along."""
    max_tokens: int
    """What is longer is cut off, as the encoder was trained; special tokens count."""

    @property
    def digest(self) -> str:
        """sha256 of the canonical JSON."""
        return _digest({"modality": "text", **asdict(self)})

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """None: a text has as many tokens as it has."""
        return ()


Front = FrontConfig | TensorFront | TextFront


def _digest(value: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class FeatureScale:
    """Fixed-point grid of a trunk's features: feature = integer * step, integers within +-limit.

    Fixed when the trunk is built, from deterministic probe images and with headroom, so that it depends on the trunk
    alone: never on which batch came first.
    """

    step_d: npt.NDArray[np.float32]
    """Size of one integer step, per feature."""
    bits: int = 12
    """Width of an integer with its sign; sums of n samples stay exact in float64 while n * 2^(2 bits - 2) < 2^53."""

    @property
    def limit(self) -> int:
        """Largest integer magnitude."""
        return (1 << (self.bits - 1)) - 1

    def quantise(self, features_Bd: FeaturesBd) -> QuantisedBd:
        """Rounds to the grid, saturating at the limit. Raises InputError for what is not finite, which has no place.

        >>> FeatureScale(step_d=np.array([0.5], np.float32)).quantise(np.array([[1.2], [9999.0]], np.float32)).ravel()
        array([   2, 2047], dtype=int16)
        """
        if not np.isfinite(features_Bd).all():
            raise InputError("features must be finite; some are NaN or infinity", field="features")
        scaled_Bd = np.rint(features_Bd / self.step_d)
        quantised_Bd: QuantisedBd = np.clip(scaled_Bd, -self.limit, self.limit).astype(np.int16)
        return quantised_Bd

    def restore(self, quantised_Bd: QuantisedBd) -> FeaturesBd:
        """The features that the integers stand for."""
        return quantised_Bd.astype(np.float32) * self.step_d

    @property
    def digest(self) -> str:
        """sha256 over bits and steps."""
        return hashlib.sha256(bytes([self.bits]) + self.step_d.astype("<f4").tobytes()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Trunk:
    """One ONNX graph from a prepared sample to features: what learns, what serves and what ships.

    The graph has one output `features` float32 [N, d] and one input, N dynamic, whose name tells the modality:
    `pixels` float32 [N, 3, H, W], `tensor` float32 [N, *shape], or `input_ids` int64 [N, L], shorter rows
    filled up with -1.
    """

    onnx: bytes
    scale: FeatureScale
    front: Front
    parity_max_rel_diff: float
    """Against the source model on the probes; 0 where the source is this very graph."""
    provenance: Mapping[str, str] = field(default_factory=dict)
    """source, revision, sha256 of each file, loader, library versions, licence."""
    tokenizer: bytes = b""
    """text: the tokenizer.json."""

    @property
    def feature_dim(self) -> int:
        """d."""
        return int(self.scale.step_d.size)

    @cached_property
    def digest(self) -> str:
        """sha256 of the ONNX bytes: models with equal digests share one session."""
        return hashlib.sha256(self.onnx).hexdigest()

    @cached_property
    def feature_digest(self) -> str:
        """Names what a feature means: trunk, front and scale. Sums of different ones never merge."""
        return hashlib.sha256(f"{self.digest}:{self.front.digest}:{self.scale.digest}".encode()).hexdigest()


NEVER: Final = -1e30
"""Bias of a class without samples: finite, because ONNX runtimes and JSON are not at ease with -inf."""


@dataclass(frozen=True, kw_only=True)
class Novelty:
    """How unlike all learned classes a sample is: the squared distance to the nearest class's mean in a few directions
    (`everlearn.heads._novelty`), in units of where that class ends. Beyond 1 the sample is unknown.

    Served by NumPy, exported as a few ONNX nodes; both use exactly these numbers. Axes: k directions.
    """

    basis_dk: npt.NDArray[np.float32]
    offset_k: npt.NDArray[np.float32]
    weight_kC: npt.NDArray[np.float32]
    bias_C: npt.NDArray[np.float32]
    scale_C: npt.NDArray[np.float32]
    """1 / the squared distance at which a class ends; 0 of one without samples."""

    def of(self, features_Bd: FeaturesBd) -> npt.NDArray[np.float32]:
        """float32 [B], at least 0."""
        z_Bk = features_Bd @ self.basis_dk + self.offset_k
        apart_BC = z_Bk @ self.weight_kC + self.bias_C
        apart_BC += np.sum(z_Bk * z_Bk, axis=1, keepdims=True) * self.scale_C
        nearest_B: npt.NDArray[np.float32] = np.maximum(apart_BC.min(axis=1), np.float32(0))
        return nearest_B

    def over(self, columns_K: npt.NDArray[np.intp]) -> Novelty:
        """Of these classes alone."""
        return replace(
            self,
            weight_kC=np.ascontiguousarray(self.weight_kC[:, columns_K]),
            bias_C=self.bias_C[columns_K],
            scale_C=self.scale_C[columns_K],
        )


UNKNOWN: Final = -1
"""Index in place of a label's, where a sample is unknown; the label is empty then, which no label can be."""


@dataclass(frozen=True, kw_only=True)
class LinearHead:
    """What every closed-form head comes down to: scores = x W + b, with x optionally scaled to unit length.

    Of several labels, a score is the probability sigmoid(x W + b) that the sample has the label; of a regression, it is
    the output's value. Served by NumPy, exported as a few ONNX nodes; both use exactly these numbers.
    """

    weight_dC: npt.NDArray[np.float32]
    bias_C: npt.NDArray[np.float32]
    normalise: bool
    """Divide each feature vector by its Euclidean length first (cosine scores)."""
    labels: tuple[str, ...]
    """Label of each column, append-only over a model's life."""
    regularization: float
    """Ridge penalty relative to the mean eigenvalue (GCV), or shrinkage (OAS); 0 where the head has none."""
    task: Task = "classification"
    """What a score means."""
    novelty: Novelty | None = None
    """What tells samples unlike all classes, where the declaration asks for it."""

    @property
    def tells_novelty(self) -> bool:
        """Whether there is one; asking that reads no weights."""
        return self.novelty is not None

    @property
    def is_loaded(self) -> bool:
        """Whether its weights are in RAM; a server reads those of some when they are needed."""
        return True

    def scores(self, features_Bd: FeaturesBd) -> npt.NDArray[np.float32]:
        """float32 [B, C]."""
        if self.normalise:
            length_B1 = np.linalg.norm(features_Bd, axis=1, keepdims=True)
            features_Bd = features_Bd / np.maximum(length_B1, np.float32(1e-12))
        linear_BC = features_Bd @ self.weight_dC + self.bias_C
        return sigmoid(linear_BC) if self.task == "multilabel" else linear_BC


def sigmoid(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """1 / (1 + exp(-x)), without an overflow at either end.

    >>> sigmoid(np.array([-1e30, 0, 1e30], np.float32)).tolist()
    [0.0, 0.5, 1.0]
    """
    small = np.exp(-np.abs(logits))
    chance: npt.NDArray[np.float32] = np.where(logits >= 0, np.float32(1), small) / (1 + small)
    return chance


@dataclass(frozen=True, kw_only=True)
class BackboneFiles:
    """Files of one source, each verified against its sha256: what a hub hands to a loader."""

    source: str
    """As declared, e.g. `hf://timm/tf_efficientnet_lite0.in1k`."""
    revision: str
    """Commit (hf), version (wheel) or empty (folder)."""
    paths: Mapping[str, Path]
    """File name in the source -> local path."""
    sha256: Mapping[str, str]
    """File name in the source -> lower-case hex."""
