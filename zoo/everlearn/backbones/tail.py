"""The trainable end of a network as a value, without torch: a graph without weights, and the weights.

    trunk.onnx: pixels -> features [N, d_cut]  |  tail: activations [N, d_cut] -> features [N, d]

The graph is traced once, when the cut is made. Its initialisers are named as the network's parameters are and hold
nothing; learning changes the weights alone, and new weights meet the old graph in ONNX Runtime or in a file.

Axes: B samples in a batch, d features, d_cut values of an image at the cut.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType
from typing import cast

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import safetensors
import safetensors.numpy
from onnx import TensorProto

from everlearn.errors import BackboneError
from everlearn.runtime.session import CPU, first_line, open_session, session_options
from everlearn.runtime.staging import DEVICES, run_wiped
from everlearn.values import FeaturesBd

Weights = Mapping[str, npt.NDArray[np.float32]]
"""Parameters and batch-norm statistics by their name in the network, float32."""
Argument = bool | int | float | str | list[int]

PLACE = "weights"
"""Where the graph says that its initialisers lie: a name that is no file, so that nothing is read by accident."""


@dataclass(frozen=True, kw_only=True)
class Tail:
    """Everything that follows the cut, for whoever trains it, serves it or exports it."""

    architecture: str
    """timm's name of the whole network; of another loader its name in front: `transformers/bert`, `mlp/128x64`."""
    arguments: Mapping[str, Argument] = field(default_factory=dict)
    """Of its constructor, beside the name."""
    blocks: int | None
    """How many of the network's last blocks are in here; None is all of the network, its stem included."""
    cut: str
    """The lowest block in here; empty where all of the network is."""
    shape: tuple[int, ...]
    """Of one sample's values at the cut: [C, H, W], [H, W, C], [tokens, width] or [width]."""
    channel_axis: int
    """Which axis of the shape tells the channels apart: 0, or the last."""
    height: int
    """Pixels the whole network takes; 0 for texts and tensors."""
    width: int
    """Pixels the whole network takes; for texts the places at the cut, 0 for tensors."""
    feature_dim: int
    """d, after pooling."""
    graph: bytes
    """ONNX, `activations` [N, d_cut] -> `features` [N, d]; its initialisers are named and empty."""
    weights: bytes
    """safetensors of float32, by the names that the graph's initialisers have."""

    @property
    def loader(self) -> str:
        """Whose network it is: the loader that can rebuild it."""
        return self.architecture.partition("/")[0] if "/" in self.architecture else "timm"

    @property
    def input_dim(self) -> int:
        """d_cut: values of one image at the cut."""
        return math.prod(self.shape)

    @property
    def channels(self) -> npt.NDArray[np.intp]:
        """Channel of each of the d_cut values: those of one channel are alike, and share a scale.

        >>> import dataclasses
        >>> tail = Tail(architecture="x", blocks=1, cut="b", shape=(2, 1, 3), channel_axis=0, height=8, width=8,
        ...             feature_dim=4, graph=b"", weights=b"")
        >>> tail.channels, dataclasses.replace(tail, channel_axis=2).channels
        (array([0, 0, 0, 1, 1, 1]), array([0, 1, 2, 0, 1, 2]))
        """
        return channels_of(self.shape, self.channel_axis)

    @cached_property
    def graph_digest(self) -> str:
        """sha256 of what stays when weights change: tails with equal ones can exchange weights."""
        told = [
            self.architecture,
            dict(self.arguments),
            self.blocks,
            self.cut,
            self.shape,
            self.channel_axis,
            self.height,
            self.width,
        ]
        graph = hashlib.sha256(self.graph).hexdigest()
        return hashlib.sha256(json.dumps([*told, self.feature_dim, graph], sort_keys=True).encode()).hexdigest()

    @cached_property
    def digest(self) -> str:
        """sha256 over structure and weights."""
        weights = hashlib.sha256(self.weights).hexdigest()
        return hashlib.sha256(f"{self.graph_digest}:{weights}".encode()).hexdigest()

    @cached_property
    def arrays(self) -> Weights:
        """The weights. Raises BackboneError for bytes that hold none."""
        try:
            return MappingProxyType(safetensors.numpy.load(self.weights))
        except safetensors.SafetensorError as error:
            raise BackboneError(f"the tail's weights are no safetensors: {error}") from error

    def with_weights(self, weights: Weights) -> Tail:
        """The same tail after it has learned. Raises BackboneError for other names, shapes, or what is not finite."""
        check_weights(self, weights)
        # Copies in one order: equal weights are equal bytes.
        ordered = {name: np.ascontiguousarray(weights[name], np.float32) for name in sorted(weights)}
        return replace(self, weights=safetensors.numpy.save(ordered))


def channels_of(shape: tuple[int, ...], channel_axis: int) -> npt.NDArray[np.intp]:
    """Index along the channel axis of each value of a flattened array of that shape."""
    return cast(npt.NDArray[np.intp], np.indices(shape)[channel_axis].reshape(-1))


def check_weights(tail: Tail, weights: Weights) -> None:
    """Raises BackboneError unless the weights have the names and shapes of the tail's own, and are finite float32."""
    wanted = tail.arrays
    problems = [f"missing {name}" for name in wanted if name not in weights]
    problems += [f"unexpected {name}" for name in weights if name not in wanted]
    for name in wanted.keys() & weights.keys():
        found = weights[name]
        if found.shape != wanted[name].shape or found.dtype != np.float32:
            problems.append(f"{name} is {found.dtype} {list(found.shape)}, not float32 {list(wanted[name].shape)}")
        elif not np.isfinite(found).all():
            problems.append(f"{name} holds NaN or infinity")
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise BackboneError(f"the weights do not fit the tail: {', '.join(sorted(problems)[:5])}{more}")


def fill(graph: bytes, weights: Weights) -> bytes:
    """The graph with its weights inside: for a file that stands alone. Raises BackboneError if one is missing."""
    model = onnx.load_model_from_string(graph)
    for tensor in model.graph.initializer:
        if tensor.data_location != TensorProto.EXTERNAL:
            continue
        if tensor.name not in weights:
            raise BackboneError(f"the tail's graph needs {tensor.name}, which is not among the weights")
        tensor.ClearField("external_data")
        tensor.ClearField("data_location")
        tensor.raw_data = np.ascontiguousarray(weights[tensor.name], "<f4").tobytes()
    return bytes(model.SerializeToString(deterministic=True))


def emptied(model: onnx.ModelProto, names: frozenset[str]) -> bytes:
    """A graph whose named initialisers hold nothing and are given at load: a few KB that any weights go into."""
    for tensor in model.graph.initializer:
        if tensor.name not in names:
            continue
        shape = list(tensor.dims)
        size = 4 * math.prod(shape)
        name = tensor.name
        tensor.Clear()
        tensor.name, tensor.data_type = name, TensorProto.FLOAT
        tensor.dims.extend(shape)
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", PLACE), ("offset", "0"), ("length", str(size))):
            tensor.external_data.add(key=key, value=value)
    return bytes(model.SerializeToString(deterministic=True))


def external_names(graph: bytes) -> tuple[str, ...]:
    """Initialisers that a graph waits for, sorted."""
    model = onnx.load_model_from_string(graph)
    return tuple(sorted(t.name for t in model.graph.initializer if t.data_location == TensorProto.EXTERNAL))


class TailSession:
    """Runs values at the cut to features. A new one for new weights: ONNX Runtime folds what it has loaded.

    Thread-safe. `names`: what `external_names` says of the graph, for callers who ask again and again.
    Raises BackboneError for a graph or weights that ONNX Runtime cannot take, UnavailableError without the provider.
    """

    def __init__(
        self, tail: Tail, *, intra_threads: int = 1, names: tuple[str, ...] | None = None, provider: str = CPU
    ) -> None:
        options = session_options(intra_threads)
        names = external_names(tail.graph) if names is None else names
        try:
            values = [ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(tail.arrays[name])) for name in names]
        except KeyError as error:
            raise BackboneError(f"the tail's graph needs {error}, which is not among its weights") from error
        options.add_external_initializers(list(names), values)
        self._session = open_session(tail.graph, options, (provider,), what="the tail")
        self._device = DEVICES.get(provider)

    def run(self, activations_Bd: FeaturesBd) -> FeaturesBd:
        """float32 [B, d] of float32 [B, d_cut]. Raises BackboneError if the graph refuses it."""
        try:
            if self._device is not None:
                return run_wiped(self._session, "activations", activations_Bd, "features", device=self._device)
            return cast(FeaturesBd, self._session.run(["features"], {"activations": activations_Bd})[0])
        except Exception as error:
            raise BackboneError(f"the tail failed on {list(activations_Bd.shape)}: {first_line(error)}") from error
