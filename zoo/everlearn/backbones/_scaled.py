"""Values of a tensor, flattened, each brought from its declared range to [-1, 1]: where every trunk of tensors begins.

Axes: N samples, d values of one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from everlearn.values import FeaturesBd, TensorFront

OPSET, IR_VERSION = 18, 10


def scaled_graph(
    front: TensorFront,
    nodes: Sequence[onnx.NodeProto] = (),
    constants: Sequence[TensorProto] = (),
    *,
    features: int | None = None,
    name: str = "trunk",
) -> onnx.ModelProto:
    """`tensor` [N, *shape] -> (tensor - middle) / half range, flattened -> `nodes`, whose last one gives `features`.

    What the nodes take is called `scaled`; without any it is what comes out. `features`: how many they give, d if None.
    """
    dim = math.prod(front.shape)
    middle_d, factor_d = _middle_and_factor(front)
    scaled = "scaled" if nodes else "features"
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["tensor"], ["flat"], name="flat", axis=1),
            # Subtracted first: a middle far from zero would round away what a fused offset should keep.
            helper.make_node("Sub", ["flat", "middle"], ["centred"], name="centred"),
            helper.make_node("Mul", ["centred", "factor"], [scaled], name=scaled),
            *nodes,
        ],
        name,
        [helper.make_tensor_value_info("tensor", TensorProto.FLOAT, ["N", *front.shape])],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["N", dim if features is None else features])],
        [numpy_helper.from_array(middle_d, "middle"), numpy_helper.from_array(factor_d, "factor"), *constants],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)


def scaled(front: TensorFront, tensors: npt.NDArray[np.generic]) -> FeaturesBd:
    """What the graph makes of tensors [N, *shape], by NumPy: float32 [N, d]."""
    middle_d, factor_d = _middle_and_factor(front)
    flat_Nd = tensors.astype(np.float32).reshape(len(tensors), middle_d.size)
    scaled_Nd: FeaturesBd = (flat_Nd - middle_d) * factor_d
    return scaled_Nd


def _middle_and_factor(front: TensorFront) -> tuple[FeaturesBd, FeaturesBd]:
    low_d, high_d = (
        np.broadcast_to(np.array(ends, np.float64), front.shape).reshape(-1) for ends in (front.low, front.high)
    )
    return ((low_d + high_d) / 2).astype(np.float32), (2 / (high_d - low_d)).astype(np.float32)
