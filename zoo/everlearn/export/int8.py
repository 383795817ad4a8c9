"""A trunk in 8 bits: static QDQ, activations uint8 with a zero point, weights int8 with a scale for each channel.

U8S8 is what CPUs with VNNI, and ONNX Runtime's kernels without it, are fastest with. Ranges of activations come from a
sketch (`export.ranges`) that an observer filled: the same graph, with the extremes of its tensors as only output.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper, shape_inference
from onnxruntime.quantization.calibrate import CalibrationMethod, TensorData, TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.quantization.quant_utils import QuantType

from everlearn.errors import BackboneError
from everlearn.export.graphs import LOWEST_OPSET, opset, raised, tidy
from everlearn.values import LinearHead

OPERATORS: Final = (
    "Conv",
    "Clip",
    "Relu",
    "Add",
    "GlobalAveragePool",
    "AveragePool",
    "MaxPool",
    "Concat",
    "Pad",
    "MatMul",
    "Gemm",
)
"""With Conv alone, EfficientNet-Lite0 lost 13 points on digits: what is before an activation has a wide range."""
_WEIGHED: Final = ("Conv", "MatMul", "Gemm")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What of a trunk is quantised."""

    model: onnx.ModelProto
    """The trunk, its constants as initializers."""
    nodes: tuple[str, ...]
    tensors: tuple[str, ...]
    """Activations whose ranges it takes."""


def plan(trunk: bytes) -> Plan:
    """Raises BackboneError where nothing has weights to quantise."""
    model = tidy(onnx.load_model_from_string(trunk))
    model = raised(model, max(LOWEST_OPSET, opset(model)))
    _name_and_fold(model)
    known = shape_inference.infer_shapes(model).graph
    constants = {tensor.name for tensor in model.graph.initializer}
    activations = {
        value.name
        for value in (*known.value_info, *known.input, *known.output)
        if value.type.tensor_type.elem_type == TensorProto.FLOAT
        and len(value.type.tensor_type.shape.dim) > 1
        and value.name not in constants
    }
    nodes = [node for node in model.graph.node if node.op_type in OPERATORS and node.output[0] in activations]
    if not any(node.op_type in _WEIGHED and node.input[1] in constants for node in nodes):
        raise BackboneError("the backbone has no convolution or product with weights to quantise", field="int8_export")
    tensors = {name for node in nodes for name in (*node.input, *node.output) if name in activations}
    return Plan(model=model, nodes=tuple(node.name for node in nodes), tensors=tuple(sorted(tensors)))


def observer(planned: Plan) -> bytes:
    """The trunk with one output instead of its own: `extremes` float32 [N, T, 2], of each sample by itself."""
    model = onnx.ModelProto()
    model.CopyFrom(planned.model)
    graph, ends = model.graph, []
    ranks = {
        value.name: len(value.type.tensor_type.shape.dim)
        for found in (shape_inference.infer_shapes(model).graph,)
        for value in (*found.value_info, *found.input, *found.output)
    }
    graph.initializer.append(numpy_helper.from_array(np.array([-1], np.int64), "observed/last"))
    for number, name in enumerate(planned.tensors):
        axes = np.arange(1, ranks[name], dtype=np.int64)
        graph.initializer.append(numpy_helper.from_array(axes, f"observed/{number}/axes"))
        for reduce in ("ReduceMin", "ReduceMax"):
            end = f"observed/{number}/{reduce}"
            graph.node.append(helper.make_node(reduce, [name, f"observed/{number}/axes"], [f"{end}/each"], keepdims=0))
            graph.node.append(helper.make_node("Unsqueeze", [f"{end}/each", "observed/last"], [end]))
            ends.append(end)
    graph.node.append(helper.make_node("Concat", ends, ["observed/all"], axis=1))
    shape = np.array([0, len(planned.tensors), 2], np.int64)
    graph.initializer.append(numpy_helper.from_array(shape, "observed/shape"))
    graph.node.append(helper.make_node("Reshape", ["observed/all", "observed/shape"], ["extremes"]))
    del graph.output[:]
    output = helper.make_tensor_value_info("extremes", TensorProto.FLOAT, ["N", len(planned.tensors), 2])
    graph.output.append(output)
    return bytes(model.SerializeToString(deterministic=True))


def quantised(planned: Plan, ranges: dict[str, tuple[float, float]], *, reduce_range: bool = False) -> bytes:
    """The trunk in 8 bits; its inputs and outputs are as they were. The same arguments give the same bytes.

    `ranges`: lowest and highest value of each of the plan's tensors. `reduce_range`: weights in 7 bits, so that no sum
    of two products leaves 16 bits, where x86 without VNNI saturates: every processor then adds up the same integers.
    """
    model = onnx.ModelProto()
    model.CopyFrom(planned.model)
    data = {
        name: TensorData(lowest=np.float32(ranges[name][0]), highest=np.float32(ranges[name][1]))
        for name in planned.tensors
    }
    quantizer = QDQQuantizer(
        shape_inference.infer_shapes(model),
        per_channel=True,
        reduce_range=reduce_range,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QUInt8,
        tensors_range=TensorsData(CalibrationMethod.MinMax, data),
        nodes_to_quantize=list(planned.nodes),
        nodes_to_exclude=[],
        op_types_to_quantize=list(OPERATORS),
        extra_options={},
    )
    quantizer.quantize_model()
    quantizer.model.topological_sort()
    made: onnx.ModelProto = tidy(quantizer.model.model)
    return bytes(made.SerializeToString(deterministic=True))


def rounded(head: LinearHead) -> LinearHead:
    """The head whose weights are what 8 bits with a scale for each column hold: the one that such a file has."""
    steps_dC, scale_C = head_in_8_bits(head)
    return replace(head, weight_dC=steps_dC.astype(np.float32) * scale_C)


def head_in_8_bits(head: LinearHead) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Weights [d, C] as int8, and the scale of each column."""
    scale_C = np.maximum(np.abs(head.weight_dC).max(axis=0), np.float32(1e-20)) / np.float32(127)
    return np.rint(head.weight_dC / scale_C).astype(np.int8), scale_C.astype(np.float32)


def _name_and_fold(model: onnx.ModelProto) -> None:
    """Each node gets a name, and constants become initializers: the quantizer finds them by that."""
    kept = []
    for number, node in enumerate(model.graph.node):
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            tensor = model.graph.initializer.add()
            tensor.CopyFrom(node.attribute[0].t)
            tensor.name = node.output[0]
            continue
        node.name = node.name or f"{node.op_type}_{number}"
        kept.append(node)
    del model.graph.node[:]
    model.graph.node.extend(kept)
