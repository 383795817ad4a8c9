"""Random features behind a trunk: relu(x W), W ~ N(0, 1/d) from a seed, as two more nodes of its graph.

So they are computed where features are: in the server, on a device that sends features, and in every export.
McDonnell et al. 2023, "RanPAC: Random Projections and Pre-trained Models for Continual Learning", eq. 4.

Axes: B rows, d features of the trunk, M random features.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

from everlearn.backbones.probes import HEADROOM, feature_scale
from everlearn.errors import BackboneError
from everlearn.spec.recipe import Projection
from everlearn.values import FeaturesBd, FeatureScale, Trunk

_INNER = "projection/input"
_WEIGHT = "projection/weight"
_ROWS = 512


def project(trunk: Trunk, projection: Projection) -> Trunk:
    """The trunk with random features behind it. Raises BackboneError for a graph that is not a trunk.

    Their scale comes from the trunk's own and the seed alone, so that equal declarations give equal feature digests.
    """
    model = onnx.load_model_from_string(trunk.onnx)
    weight_dM = weights(trunk.feature_dim, projection)
    _append(model, weight_dM)
    scale = feature_scale(np.maximum(_stand_ins(trunk.scale) @ weight_dM, 0), trunk.scale.bits)
    return replace(
        trunk,
        onnx=model.SerializeToString(deterministic=True),
        scale=scale,
        provenance={**trunk.provenance, "projection": f"relu, {projection.dim} features, seed {projection.seed}"},
    )


def weights(dim: int, projection: Projection) -> npt.NDArray[np.float32]:
    """W, float32 [d, M]."""
    random = np.random.Generator(np.random.PCG64(projection.seed))
    normal_dM = random.standard_normal((dim, projection.dim), dtype=np.float32)
    return normal_dM * np.float32(1 / np.sqrt(dim))


def _append(model: onnx.ModelProto, weight_dM: npt.NDArray[np.float32]) -> None:
    graph = model.graph
    producers = [node for node in graph.node if "features" in node.output]
    if len(producers) != 1 or [output.name for output in graph.output] != ["features"]:
        raise BackboneError("the graph is no trunk: it needs one output `features` that a node makes")
    for node in graph.node:
        node.input[:] = [_INNER if name == "features" else name for name in node.input]
        node.output[:] = [_INNER if name == "features" else name for name in node.output]
    raw = np.ascontiguousarray(weight_dM, "<f4").tobytes()
    graph.initializer.append(TensorProto(name=_WEIGHT, data_type=TensorProto.FLOAT, dims=weight_dM.shape, raw_data=raw))
    graph.node.append(helper.make_node("MatMul", [_INNER, _WEIGHT], ["projection/sum"], name="projection/MatMul"))
    graph.node.append(helper.make_node("Relu", ["projection/sum"], ["features"], name="projection/Relu"))
    features = helper.make_tensor_value_info("features", TensorProto.FLOAT, ["N", weight_dM.shape[1]])
    graph.output[0].CopyFrom(features)


def _stand_ins(scale: FeatureScale) -> FeaturesBd:
    """Rows such as pooled activations are: non-negative, mostly far below the peak that the scale was made for."""
    random = np.random.Generator(np.random.PCG64(0))
    peak_d = scale.step_d * np.float32(scale.limit / HEADROOM)
    share_Bd = np.minimum(random.exponential(0.25, (_ROWS, peak_d.size)), 1).astype(np.float32)
    stand_ins_Bd: FeaturesBd = share_Bd * peak_d
    return stand_ins_Bd
