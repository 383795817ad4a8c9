"""What an exported file does with samples that are unlike all learned classes: `Novelty.of`, node for node.

Axes: N samples, C classes, k directions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import onnx
from onnx import TensorProto, helper

from everlearn.export.head_nodes import node, tensor, text_tensor
from everlearn.values import UNKNOWN, Novelty

NOVELTY: Final = "novelty"
"""Output float32 [N]; beyond 1 the sample is unknown."""
BEST: Final = "head/best"
"""Index of the largest score, whether or not the sample is known."""


def add_novelty(graph: onnx.GraphProto, novelty: Novelty, features: str) -> None:
    """What gives `novelty` of `features`; `tell_novelty` makes an output of it."""
    arrays = {
        "basis": novelty.basis_dk,
        "offset": novelty.offset_k,
        "weight": novelty.weight_kC,
        "bias": novelty.bias_C,
        "scale": novelty.scale_C[None, :],
    }
    graph.initializer.extend(tensor(f"novelty/{name}", np.asarray(each, np.float32)) for name, each in arrays.items())
    graph.initializer.append(tensor("novelty/axis", np.array([1], np.int64)))
    graph.initializer.append(tensor("novelty/least", np.array([0], np.float32)))
    steps: tuple[tuple[str, list[str], str, dict[str, int]], ...] = (
        ("Gemm", [features, "novelty/basis", "novelty/offset"], "novelty/z", {}),
        ("ReduceSumSquare", ["novelty/z", "novelty/axis"], "novelty/length", {"keepdims": 1}),
        ("Mul", ["novelty/length", "novelty/scale"], "novelty/scaled", {}),
        ("Gemm", ["novelty/z", "novelty/weight", "novelty/bias"], "novelty/linear", {}),
        ("Add", ["novelty/linear", "novelty/scaled"], "novelty/apart", {}),
        ("ReduceMin", ["novelty/apart", "novelty/axis"], "novelty/nearest", {"keepdims": 0}),
        ("Max", ["novelty/nearest", "novelty/least"], NOVELTY, {}),
    )
    for op_type, inputs, output, attributes in steps:
        graph.node.append(node(op_type, inputs, output, name=f"node/{output}", **attributes))


def tell_novelty(graph: onnx.GraphProto) -> None:
    """`novelty` is an output of the graph, the last so far."""
    graph.output.append(helper.make_tensor_value_info(NOVELTY, TensorProto.FLOAT, ["N"]))


def add_unknown(graph: onnx.GraphProto, labels: Sequence[str]) -> str:
    """The output `label_index` of BEST and the novelty; returns the table in which it finds its label."""
    graph.initializer.append(tensor("novelty/limit", np.array(1, np.float32)))
    graph.initializer.append(tensor("novelty/unknown", np.array(UNKNOWN, np.int64)))
    # An index of -1 is the last of a table: here that is the label of what has none.
    graph.initializer.append(text_tensor("novelty/answers", [*labels, ""]))
    graph.node.append(node("LessOrEqual", [NOVELTY, "novelty/limit"], "novelty/known", name="node/novelty/known"))
    graph.node.append(node("Where", ["novelty/known", BEST, "novelty/unknown"], "label_index", name="node/label_index"))
    return "novelty/answers"
