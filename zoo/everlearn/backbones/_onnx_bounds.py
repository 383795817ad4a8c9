"""A foreign graph must need the same memory for every image: what the pixels are must not say how large a tensor is.

A trunk is tried on a few images when it is built, in a child with limits, and runs in the server ever after. A graph
that makes room for as many numbers as an image is bright would pass the first and end the second. So two things are
followed through the graph: values that depend on the pixels, and shapes that do; neither may become a size.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import onnx

from everlearn.errors import BackboneError

_SIZES: dict[str, tuple[int, ...]] = {
    "AffineGrid": (1,),
    "BlackmanWindow": (0,),
    "CenterCropPad": (1,),
    "Col2Im": (1, 2),
    "ConstantOfShape": (0,),
    "DFT": (1,),
    "Expand": (1,),
    "HammingWindow": (0,),
    "HannWindow": (0,),
    "MaxUnpool": (2,),
    "MelWeightMatrix": (0, 1),
    "OneHot": (1,),
    "Pad": (1,),
    "Range": (0, 1, 2),
    "Reshape": (1,),
    "Resize": (1, 2, 3),
    "STFT": (1, 3),
    "Tile": (1,),
    "Upsample": (1,),
}
"""Operator -> places of its inputs that say how large the output is. Others only make it smaller."""
_COUNTS = frozenset({"Compress", "NonMaxSuppression", "NonZero", "StringSplit", "Unique"})
"""Give as many rows as they find."""
_OF_SHAPE = frozenset({"Shape", "Size"})


@dataclass
class _Known:
    """Names of tensors that depend on the pixels."""

    values: set[str] = field(default_factory=set)
    shapes: set[str] = field(default_factory=set)


def check_bounded(graph: onnx.GraphProto, source: str) -> None:
    """Raises BackboneError where the pixels of input `source` decide how much memory or time the graph takes."""
    _follow(graph, _Known(values={source}))


def _follow(graph: onnx.GraphProto, known: _Known) -> None:
    for node in graph.node:
        if node.op_type == "Loop":
            raise BackboneError(f"node {node.name[:60]!r} is a Loop, which may never end; export it unrolled")
        for place in _SIZES.get(node.op_type, ()):
            if place < len(node.input) and node.input[place] in known.values:
                raise BackboneError(
                    f"the size of {node.output[0][:60]!r} ({node.op_type}) depends on the pixels; the memory that a "
                    "trunk takes must be the same for every image"
                )
        inner = [graph for attribute in node.attribute for graph in (attribute.g, *attribute.graphs) if graph.node]
        reads = [*node.input, *(name for below in inner for each in below.node for name in each.input)]
        by_value, by_shape = _any(reads, known.values), _any(reads, known.shapes)
        for below in inner:
            within = _Known(set(known.values), set(known.shapes))
            within.values |= {value.name for value in below.input} if by_value else set()
            _follow(below, within)
        if node.op_type in _OF_SHAPE:
            by_value = by_shape
            by_shape = False
        elif by_value and node.op_type in _COUNTS:
            by_shape = True
        known.values |= set(node.output) if by_value else set()
        known.shapes |= set(node.output) if by_shape else set()


def _any(names: Iterable[str], of: set[str]) -> bool:
    return any(name in of for name in names)
