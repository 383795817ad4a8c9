"""A small network over tensors: `mlp:128x64` is two layers, 128 and 64 wide, each relu(x W^T + b), weights from a seed.

    tensor -> each value from its declared range to [-1, 1] -> layers -> features, what the last layer gives

Frozen, its features are random ones, as those of `spec.projection` (Rahimi & Recht 2007; McDonnell 2023). Its layers
are blocks: with `adapt: {kind: last_blocks}` the uppermost learn by gradient steps and the cut is below them.

Weights are uniform with He's variance 2 / inputs (He et al. 2015, arXiv:1502.01852, eq. 10), biases uniform within
1 / sqrt(inputs), so that the kinks of the layer lie within its inputs' range. They come from PCG64's raw integers, of
which NumPy promises that they never change, and exact operations: the same declaration is the same bits everywhere.

Needs no file, and no torch but where it is trained.

Axes: N samples, o outputs and i inputs of a layer, d features.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
import safetensors.numpy
from onnx import TensorProto, helper, numpy_helper

from everlearn.backbones._scaled import IR_VERSION, OPSET, scaled, scaled_graph
from everlearn.backbones.base import BackboneDefaults, Loader, provenance_of
from everlearn.backbones.probes import Reference, finish
from everlearn.backbones.tail import Tail, emptied
from everlearn.errors import BackboneError, IntegrityError
from everlearn.spec import rules
from everlearn.spec.model import Backbone
from everlearn.values import BackboneFiles, FeaturesBd, Front, TensorFront, Trunk, TrunkInput

if TYPE_CHECKING:
    from everlearn.backbones.cut import TailModule

_WEIGHTS = "weights"
"""What the digest of all layers is called, where other backbones name a file."""


class Layer(NamedTuple):
    """relu(x W^T + b)."""

    name: str
    weight_oi: npt.NDArray[np.float32]
    bias_o: npt.NDArray[np.float32]

    @property
    def arrays(self) -> dict[str, npt.NDArray[np.float32]]:
        """By the names that the layer's parameters have in torch."""
        return {f"{self.name}.linear.weight": self.weight_oi, f"{self.name}.linear.bias": self.bias_o}

    def apply(self, x_Ni: FeaturesBd) -> FeaturesBd:
        """[N, o]."""
        given_No: FeaturesBd = np.maximum(x_Ni @ self.weight_oi.T + self.bias_o, 0)
        return given_No


class MlpLoader(Loader):
    """`tensor` [N, *shape] -> scaled -> layers -> `features` [N, width of the last layer]."""

    def describe(self, backbone: Backbone, files: BackboneFiles | None) -> BackboneDefaults:
        """It takes tensors, of whatever shape the declaration says."""
        width = rules.mlp_widths(backbone.source)[-1]
        return BackboneDefaults(modality="tensor", architecture=None, feature_dim=width, licence=None)

    def build(self, backbone: Backbone, files: BackboneFiles, front: Front, *, bits: int) -> Trunk:
        """See the base class; also raises IntegrityError where `sha256` pins other weights. The reference is NumPy."""
        front, layers, provenance = _drawn(backbone, files, front)
        return finish(_serialised(_trunk(front, layers)), front, bits, provenance, _reference(front, layers))

    def build_cut(
        self, backbone: Backbone, files: BackboneFiles, front: Front, *, bits: int, blocks: int | None
    ) -> tuple[Trunk, Tail]:
        """See the base class. With all layers in the tail the trunk is what brings values to [-1, 1]."""
        front, layers, provenance = _drawn(backbone, files, front)
        at = _cut(backbone, layers, blocks)
        below, above = layers[:at], layers[at:]
        tail = Tail(
            architecture=f"{rules.MLP}/{backbone.source.partition(':')[2]}",
            blocks=blocks,
            cut="" if blocks is None else above[0].name,
            shape=(above[0].weight_oi.shape[1],),
            channel_axis=0,
            height=0,
            width=0,
            feature_dim=len(above[-1].bias_o),
            graph=_tail_graph(above),
            weights=safetensors.numpy.save(_arrays(above)),
        )
        provenance |= {"cut": tail.cut or "values", "cut_shape": str(tail.input_dim)}
        # Networks may differ above the cut alone: only a name tells their trunks, and so what belongs to each, apart.
        graph = _trunk(front, below, name=f"below-{tail.digest[:16]}")
        return finish(_serialised(graph), front, bits, provenance, _reference(front, below)), tail

    def rebuild(self, tail: Tail) -> TailModule:
        """See the base class."""
        # Here: a server whose networks stay frozen has no torch.
        from everlearn.backbones._mlp_torch import rebuilt

        return rebuilt(tail)


def layers_of(widths: Sequence[int], inputs: int, seed: int) -> tuple[Layer, ...]:
    """The layers of a network that takes `inputs` values, lowest first. Those that two networks share are equal."""
    bits = np.random.PCG64(seed)
    layers = []
    for index, (before, width) in enumerate(zip((inputs, *widths), widths, strict=False)):
        weight_oi = _uniform(bits, width * before, math.sqrt(6 / before)).reshape(width, before)
        layers.append(Layer(f"layers.{index}", weight_oi, _uniform(bits, width, math.sqrt(1 / before))))
    return tuple(layers)


def weights_digest(layers: Sequence[Layer]) -> str:
    """sha256 over names, shapes and little-endian numbers: it depends on no library's file format."""
    found = hashlib.sha256()
    for name, array in _arrays(layers).items():
        found.update(f"{name} {list(array.shape)}\n".encode())
        found.update(np.ascontiguousarray(array, "<f4").tobytes())
    return found.hexdigest()


def _uniform(bits: np.random.PCG64, count: int, bound: float) -> npt.NDArray[np.float32]:
    """Evenly within +-bound, of the integers themselves: NumPy's distributions may change with its version."""
    share = (bits.random_raw(count) >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return ((2 * share - 1) * bound).astype(np.float32)


def _drawn(
    backbone: Backbone, files: BackboneFiles, front: Front
) -> tuple[TensorFront, tuple[Layer, ...], dict[str, str]]:
    """The front, the layers, and what is to be told of them."""
    if not isinstance(front, TensorFront):
        raise BackboneError("an MLP takes tensors; write modality: tensor", field="spec.input.modality")
    if files.source != backbone.source or files.paths:
        raise BackboneError(
            f"an MLP has no files; write source: {backbone.source}, and nothing else", field="spec.backbone.source"
        )
    seed = backbone.seed or 0
    layers = layers_of(rules.mlp_widths(backbone.source), math.prod(front.shape), seed)
    digest = weights_digest(layers)
    if backbone.sha256 not in (None, digest):
        raise IntegrityError(
            f"pinned to {backbone.sha256}, but {backbone.source} with seed {seed} over {list(front.shape)} is "
            f"{digest}; declare the widths, seed and shape it was pinned with, or delete the line",
            field="spec.backbone.sha256",
        )
    told = {"architecture": f"{backbone.source}, seed {seed}", "licence": "none", f"sha256:{_WEIGHTS}": digest}
    return front, layers, provenance_of(backbone, files) | told


def _cut(backbone: Backbone, layers: Sequence[Layer], blocks: int | None) -> int:
    """Layers below the cut. Raises BackboneError where nothing is left there that a memory may keep."""
    if blocks is None:
        return 0
    if blocks >= len(layers):
        right = f"write adapt.blocks: {len(layers) - 1}, or " if len(layers) > 1 else ""
        raise BackboneError(
            f"{backbone.source} has {len(layers)} layer{'s' * (len(layers) > 1)}, and below the last {blocks} would be "
            f"the raw values, which no memory may keep; {right}name more layers, or write adapt.kind: full",
            field="spec.adapt.blocks",
        )
    return len(layers) - blocks


def _reference(front: TensorFront, layers: Sequence[Layer]) -> Reference:
    def reference(tensors: TrunkInput) -> FeaturesBd:
        x_Ni = scaled(front, tensors)
        for layer in layers:
            x_Ni = layer.apply(x_Ni)
        return x_Ni

    return reference


def _arrays(layers: Sequence[Layer]) -> dict[str, npt.NDArray[np.float32]]:
    found = {name: array for layer in layers for name, array in layer.arrays.items()}
    return dict(sorted(found.items()))


def _trunk(front: TensorFront, layers: Sequence[Layer], name: str = "trunk") -> onnx.ModelProto:
    features = len(layers[-1].bias_o) if layers else None
    return scaled_graph(front, _nodes(layers, "scaled"), _constants(layers), features=features, name=name)


def _tail_graph(layers: Sequence[Layer]) -> bytes:
    """`activations` [N, i] -> `features` [N, d], without the weights."""
    graph = helper.make_graph(
        _nodes(layers, "activations"),
        "tail",
        [helper.make_tensor_value_info("activations", TensorProto.FLOAT, ["N", layers[0].weight_oi.shape[1]])],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["N", len(layers[-1].bias_o)])],
        _constants(layers),
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    return emptied(model, frozenset(_arrays(layers)))


def _nodes(layers: Sequence[Layer], given: str) -> list[onnx.NodeProto]:
    nodes = []
    for layer in layers:
        weight, bias = layer.arrays
        linear, last = f"{layer.name}.sum", layer is layers[-1]
        gives = "features" if last else layer.name
        nodes.append(helper.make_node("Gemm", [given, weight, bias], [linear], name=linear, transB=1))
        nodes.append(helper.make_node("Relu", [linear], [gives], name=layer.name))
        given = gives
    return nodes


def _constants(layers: Sequence[Layer]) -> list[TensorProto]:
    return [numpy_helper.from_array(array, name) for layer in layers for name, array in layer.arrays.items()]


def _serialised(model: onnx.ModelProto) -> bytes:
    return bytes(model.SerializeToString(deterministic=True))
