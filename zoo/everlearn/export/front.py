"""The front as an ONNX graph: uint8 images of any size in, the trunk's pixels out.

Exports carry it, so that a device needs no image library beyond a decoder. The server runs `everlearn.inputs.front`,
which is faster; a test holds the two within 3 grey levels of each other.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from everlearn.inputs.front import crop_targets, normaliser
from everlearn.values import FrontConfig

OPSET = 20
"""As the trunks that the torch loaders export."""

IR_VERSION = 10
"""Newest that ONNX Runtime 1.22, the oldest supported, reads."""

_MODES = {"bilinear": "linear", "bicubic": "cubic"}


class _Graph:
    """Nodes and constants in order, with fresh names."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, name: str, value: object, dtype: type[np.generic] = np.int64) -> str:
        self.constants.append(numpy_helper.from_array(np.asarray(value, dtype), f"front.{name}"))
        return f"front.{name}"

    def add(self, operator: str, name: str, *inputs: str, **attributes: object) -> str:
        name = name if name == "pixels" else f"front.{name}"
        self.nodes.append(helper.make_node(operator, list(inputs), [name], name=name, **attributes))
        return name


def front_graph(front: FrontConfig) -> onnx.ModelProto:
    """Input `image` uint8 [N, H, W, 3] (one size a call), output `pixels` float32 [N, 3, height, width].

    Names inside begin with `front.`, so that the graph composes with any trunk without clashes.
    """
    graph = _Graph()
    planar = graph.add("Transpose", "planar", "image", perm=[0, 3, 1, 2])
    cropped = _crop(graph, planar, front) if front.resize == "crop" else _squash(graph, planar, front)
    levels = graph.add("Cast", "levels", cropped, to=TensorProto.FLOAT)
    factor_C, offset_C = normaliser(front)
    scaled = graph.add("Mul", "scaled", levels, graph.constant("factor", factor_C.reshape(3, 1, 1), np.float32))
    graph.add("Add", "pixels", scaled, graph.constant("offset", offset_C.reshape(3, 1, 1), np.float32))
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", "H", "W", 3])
    pixels = helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["N", 3, front.height, front.width])
    model = helper.make_model(
        helper.make_graph(graph.nodes, "front", [image], [pixels], graph.constants),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="everlearn",
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def _resize(graph: _Graph, planar: str, sizes: str, front: FrontConfig) -> str:
    # Sizes of all four axes: with `axes`, ONNX Runtime 1.31's transpose optimiser breaks a session at creation.
    outer = graph.add("Shape", "outer", planar, start=0, end=2)
    # On uint8, ONNX Runtime's antialiased Resize is a port of Pillow's, rounding between its two passes included.
    return graph.add(
        "Resize",
        "resized",
        planar,
        "",
        "",
        graph.add("Concat", "sizes", outer, sizes, axis=0),
        mode=_MODES[front.interpolation],
        antialias=1,
        coordinate_transformation_mode="half_pixel",
        cubic_coeff_a=-0.5,
        exclude_outside=1,
    )


def _squash(graph: _Graph, planar: str, front: FrontConfig) -> str:
    return _resize(graph, planar, graph.constant("size", [front.height, front.width]), front)


def _crop(graph: _Graph, planar: str, front: FrontConfig) -> str:
    """The integer arithmetic of `everlearn.inputs.front.fit_of`, on both axes at once."""
    target = graph.constant("target", crop_targets(front))
    crop = graph.constant("crop", [front.height, front.width])
    source = graph.add("Shape", "source", planar, start=2, end=4)
    fitted = _covering(graph, source, target, rounds=front.height != front.width)
    resized = _resize(graph, planar, fitted, front)
    # Half of the rest, half to even, as Python's round in torchvision's CenterCrop.
    rest = graph.add("Cast", "rest", graph.add("Sub", "rest_int", fitted, crop), to=TensorProto.FLOAT)
    half = graph.add("Mul", "half", rest, graph.constant("one_half", 0.5, np.float32))
    start = graph.add("Cast", "start", graph.add("Round", "half_even", half), to=TensorProto.INT64)
    end = graph.add("Add", "end", start, crop)
    return graph.add("Slice", "cropped", resized, start, end, graph.constant("axes", [2, 3]))


def _covering(graph: _Graph, source: str, target: str, *, rounds: bool) -> str:
    """Height and width that cover the target at the source's ratio: each is the larger of its target and its share.

    Side i follows the other side j as source_i * target_j / source_j; the side that fits exactly gives its target.
    """
    swap = graph.constant("swap", [1, 0])
    other_target = graph.add("Gather", "other_target", target, swap)
    other_source = graph.add("Gather", "other_source", source, swap)
    product = graph.add("Mul", "product", source, other_target)
    if rounds:
        product = graph.add("Cast", "product_64", product, to=TensorProto.DOUBLE)
        other_source = graph.add("Cast", "other_source_64", other_source, to=TensorProto.DOUBLE)
        ratio = graph.add("Div", "ratio", product, other_source)
        share = graph.add("Cast", "share", graph.add("Round", "ratio_half_even", ratio), to=TensorProto.INT64)
    else:
        share = graph.add("Div", "share", product, other_source)
    return graph.add("Max", "fitted", share, target)
