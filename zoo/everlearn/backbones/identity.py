"""No network at all: the values themselves, flattened, each brought from its declared range to [-1, 1].

For sensor vectors, tables and short time series, where classes are nearly linear in the values; random features behind
it (`spec.projection`) make them so where they are not. Needs no file and no torch.

Axes: N samples, d values of one.
"""

from __future__ import annotations

import math

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from everlearn.backbones.base import BackboneDefaults, Loader, provenance_of
from everlearn.backbones.probes import DECLARED_HEADROOM, finish
from everlearn.errors import BackboneError
from everlearn.spec.model import Backbone
from everlearn.values import BackboneFiles, Front, TensorFront, Trunk

_OPSET, _IR_VERSION = 18, 10


class IdentityLoader(Loader):
    """`tensor` [N, *shape] -> (tensor - middle) / half range, flattened: `features` [N, d]."""

    def describe(self, backbone: Backbone, files: BackboneFiles | None) -> BackboneDefaults:
        """It takes tensors, of whatever shape the declaration says."""
        return BackboneDefaults(modality="tensor", architecture=None, feature_dim=None, licence=None)

    def build(self, backbone: Backbone, files: BackboneFiles, front: Front, *, bits: int) -> Trunk:
        """See the base class. The parity is 0: there is no source model."""
        if not isinstance(front, TensorFront):
            raise BackboneError("the identity takes tensors; write modality: tensor", field="spec.input.modality")
        if files.source != "identity" or files.paths:
            raise BackboneError(
                "the identity has no files; write source: identity, and nothing else", field="spec.backbone.source"
            )
        graph = _graph(front).SerializeToString(deterministic=True)
        provenance = provenance_of(backbone, files) | {"licence": "none"}
        return finish(graph, front, bits, provenance, headroom=DECLARED_HEADROOM)


def _graph(front: TensorFront) -> onnx.ModelProto:
    dim = math.prod(front.shape)
    low_d, high_d = (_each(front, ends).reshape(dim) for ends in (front.low, front.high))
    constants = {"middle": (low_d + high_d) / 2, "factor": 2 / (high_d - low_d)}
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["tensor"], ["flat"], name="flat", axis=1),
            # Subtracted first: a middle far from zero would round away what a fused offset should keep.
            helper.make_node("Sub", ["flat", "middle"], ["centred"], name="centred"),
            helper.make_node("Mul", ["centred", "factor"], ["features"], name="features"),
        ],
        "trunk",
        [helper.make_tensor_value_info("tensor", TensorProto.FLOAT, ["N", *front.shape])],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["N", dim])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION)


def _each(front: TensorFront, ends: tuple[float, ...]) -> np.ndarray:
    return np.broadcast_to(np.array(ends, np.float64), front.shape)
