"""Exports in other precisions than the server's own: the same graph, smaller.

`fp16` stores the weights of trunk and tail as 16-bit floats and computes in 32 bits: each weight is cast where it is
used, which ONNX Runtime does once, when it loads the file. Arithmetic in 16 bits was tried and left out: a CPU without
kernels for it casts every activation to and fro. Measured on EfficientNet-Lite0, one core: 14.2 ms an image at 224 px
as it is, 14.3 ms with stored halves, 29.3 ms with 16-bit arithmetic (at 96 px 3.1, 3.2 and 5.2 ms), the same bytes.

`int8` computes the trunk in 8 bits (`export.int8`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final, Literal, get_args

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from everlearn.errors import InputError

Precision = Literal["fp32", "fp16", "int8"]
PRECISIONS: Final[tuple[Precision, ...]] = get_args(Precision)
TOLERANCE: Final[Mapping[Precision, float]] = {"fp32": 0.0, "fp16": 0.02, "int8": 0.0}
"""Most that a score may differ by because of it, relative to max(1, the sample's largest); where `gate.parity` allows
more, that. Half precision moves a weight by 2^-11 of its size at most, and 50 layers of a real network a score by 0.4 %
(`python -m tests.benchmarks precision`); a wrong trunk moves it by far more. A file in 8 bits is held to the graph in 8
bits that the server has tested, not to fp32: what that costs is for the accuracy of both to say."""
LEAST_VALUES: Final = 256
"""Smaller tensors weigh nothing, and among them are the ones that sizes and slopes are computed from."""
_OURS: Final = ("front.", "head/")
"""In front of names that stay as they are: the front is exact levels, the head is exact sums."""
_HALF: Final = "/fp16"


def precision_of(name: str) -> Precision:
    """The precision of that name; empty means fp32. Raises InputError."""
    for known in PRECISIONS:
        if name == known:
            return known
    if not name:
        return "fp32"
    raise InputError(f"{name[:20]!r} is no precision; it may be {', '.join(PRECISIONS)}", field="precision")


def halve(model: onnx.ModelProto) -> None:
    """Stores the weights of a composed model as 16-bit floats, in place; the same for the same model.

    Tensors that would overflow, or vanish, stay as they are. Raises InputError where no weight is large enough.
    """
    halves: dict[str, TensorProto] = {}
    for name, tensor in _weights(model.graph):
        values = numpy_helper.to_array(tensor)
        largest = float(np.abs(values).max(initial=0.0))
        half = np.finfo(np.float16)
        if float(half.tiny) <= largest <= float(half.max):
            halves[name] = numpy_helper.from_array(values.astype(np.float16), name + _HALF)
    if not halves:
        raise InputError(
            f"nothing in this model has {LEAST_VALUES} weights or more to store in half precision; export it as fp32",
            field="precision",
        )
    _replace(model.graph, halves)


def _weights(graph: onnx.GraphProto) -> Iterator[tuple[str, TensorProto]]:
    """Tensors of weights, by the name that nodes know them by: initializers, and what constants hold."""
    for tensor in graph.initializer:
        if _is_weight(tensor, tensor.name):
            yield tensor.name, tensor
    for node in graph.node:
        tensor = node.attribute[0].t if node.op_type == "Constant" else None  # empty where it is no tensor
        if tensor is not None and _is_weight(tensor, node.output[0]):
            yield node.output[0], tensor


def _is_weight(tensor: TensorProto, name: str) -> bool:
    is_large = tensor.data_type == TensorProto.FLOAT and int(np.prod(tensor.dims)) >= LEAST_VALUES
    return is_large and not name.startswith(_OURS)


def _replace(graph: onnx.GraphProto, halves: Mapping[str, TensorProto]) -> None:
    """Where a weight was, its half and the cast that makes the weight of it: no other node has to change."""
    kept = [tensor for tensor in graph.initializer if tensor.name not in halves]
    nodes = [node for node in graph.node if node.op_type != "Constant" or node.output[0] not in halves]
    casts = [
        helper.make_node("Cast", [half.name], [name], name=f"{name}/fp32", to=TensorProto.FLOAT)
        for name, half in halves.items()
    ]
    del graph.initializer[:], graph.node[:]
    graph.initializer.extend([*kept, *halves.values()])
    graph.node.extend([*casts, *nodes])
