"""Brings ONNX graphs of different makers under one roof: one opset, no clash of names, one model.

The front is ours; the trunk comes from torch's exporter or from a stranger's file. Each was written against an opset of
its own, and a model has exactly one per domain.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence

import onnx
from onnx import compose, defs, version_converter

from everlearn.errors import BackboneError

LOWEST_OPSET = 18
"""The head's nodes are written for this opset and mean the same in every later one."""
TAIL_FEATURES = "tail/features"
"""Output of a tail behind a trunk."""
IR_VERSION = 10
"""What ONNX Runtime has read since 1.18; raised only where a trunk needs more."""
# Since opset 13 these only gained options whose defaults are the old behaviour.
_ADDITIVE = frozenset({"AveragePool", "Cast", "LpPool", "Pad", "QuantizeLinear", "Reshape", "Resize", "Shape"})


def join(front: onnx.ModelProto, trunk: onnx.ModelProto) -> onnx.ModelProto:
    """One model from `image` to `features`: the front's `pixels` feed the trunk's.

    The trunk's names get the prefix `trunk/`, all but `features`; the front's keep theirs, which begin with `front.`.
    The result is in the form that `tidy` gives. Raises BackboneError where the two cannot be one model.
    """
    target = max(LOWEST_OPSET, opset(front), opset(trunk))
    front, trunk = raised(tidy(front), target), raised(tidy(trunk), target)
    _same_ir(front, trunk)
    _check_seam(front.graph.output[0], trunk.graph.input)
    try:
        trunk = compose.add_prefix(trunk, "trunk/", rename_outputs=False)
        joined = compose.merge_models(front, trunk, io_map=[("pixels", "trunk/pixels")])
    except (ValueError, onnx.checker.ValidationError) as error:
        raise BackboneError(f"front and trunk do not join: {error}", field="backbone") from error
    return tidy(joined)


def alone(trunk: onnx.ModelProto) -> onnx.ModelProto:
    """The trunk as a model that begins with it: its own input, inner names with the prefix `trunk/`, and `features`.

    For samples that need no front. Raises BackboneError as `join`.
    """
    trunk = raised(tidy(trunk), max(LOWEST_OPSET, opset(trunk)))
    trunk.ir_version = max(IR_VERSION, trunk.ir_version)
    return tidy(compose.add_prefix(trunk, "trunk/", rename_inputs=False, rename_outputs=False))


def with_tail(trunk: onnx.ModelProto, tail: onnx.ModelProto) -> onnx.ModelProto:
    """What `join` or `alone` made, and behind its `features` the tail, whose features are called TAIL_FEATURES.

    Raises BackboneError as `join`.
    """
    target = max(opset(trunk), opset(tail))
    trunk, tail = raised(trunk, target), raised(tidy(tail), target)
    tail.ir_version = trunk.ir_version = max(trunk.ir_version, tail.ir_version)
    tail = compose.add_prefix(tail, "tail/")
    return tidy(compose.merge_models(trunk, tail, io_map=[("features", "tail/activations")]))


def opset(model: onnx.ModelProto) -> int:
    """Version of the standard operators that the model is written for."""
    for imported in model.opset_import:
        if imported.domain in ("", "ai.onnx"):
            return int(imported.version)
    raise BackboneError("the graph imports no standard opset", field="backbone")


def raised(model: onnx.ModelProto, target: int) -> onnx.ModelProto:
    """The same model written for opset `target`. Raises BackboneError where onnx knows no way.

    Relabelled where every operator in it means the same in both, which is exact and nearly always so; only otherwise
    through onnx's converter.
    """
    current = opset(model)
    if current == target:
        return model
    changed = sorted({node.op_type for node in _nodes(model) if _changes(node, current, target)})
    if not changed:
        relabelled = onnx.ModelProto()
        relabelled.CopyFrom(model)
        every = [relabelled.opset_import, *(function.opset_import for function in relabelled.functions)]
        for imported in itertools.chain.from_iterable(every):
            if imported.domain in ("", "ai.onnx"):
                imported.version = target
        return relabelled
    try:
        return tidy(version_converter.convert_version(model, target))
    except Exception as error:  # the converter's C++ side raises RuntimeError and types of its own
        raise BackboneError(
            f"the graph is written for opset {current} and its {', '.join(changed)} cannot be carried to opset "
            f"{target}; export it again with opset {target}",
            field="backbone",
        ) from error


def tidy(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy without what does not compute: doc strings, shape notes, foreign metadata, initialisers listed as inputs.

    Two exports of one network differ in just these, and an exporter's notes hold paths of the machine that made them.
    Raises BackboneError for weights outside the file.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for name in ("doc_string", "producer_name", "producer_version", "domain", "model_version", "metadata_props"):
        copy.ClearField(name)
    graph = copy.graph
    del graph.value_info[:]
    graph.ClearField("doc_string")
    graph.ClearField("metadata_props")
    initialised = {tensor.name for tensor in graph.initializer}
    for tensor in graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            raise BackboneError(f"tensor {tensor.name} lies outside the file; weights must be inside", field="backbone")
        tensor.ClearField("doc_string")
    inputs = [value for value in graph.input if value.name not in initialised]
    del graph.input[:]
    graph.input.extend(inputs)
    for node in _nodes(copy):
        node.ClearField("doc_string")
        node.ClearField("metadata_props")
    return copy


def _check_seam(pixels: onnx.ValueInfoProto, inputs: Sequence[onnx.ValueInfoProto]) -> None:
    # onnx.compose looks at names only. A dimension without a number fits any.
    given, taken = _shape(pixels), [_shape(each) for each in inputs]
    fits = len(taken) == 1 and len(taken[0]) == len(given) and taken[0][0] == given[0]
    if not fits or any(a != b for a, b in zip(taken[0][1:], given[1:], strict=True) if a and b):
        raise BackboneError(
            f"the front gives {given} and the trunk takes {taken}; it must take one input of that type and size "
            "(0: any)",
            field="backbone",
        )


def _shape(value: onnx.ValueInfoProto) -> list[str | int]:
    """Name of the element type, then the dimensions, 0 where one is no number."""
    tensor = value.type.tensor_type
    return [onnx.TensorProto.DataType.Name(tensor.elem_type), *(each.dim_value for each in tensor.shape.dim)]


def _same_ir(front: onnx.ModelProto, trunk: onnx.ModelProto) -> None:
    # Only ever raised: a higher IR may use types that a lower one has not.
    highest = max(IR_VERSION, front.ir_version, trunk.ir_version)
    front.ir_version = trunk.ir_version = highest


def _nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    yield from _nodes_of(model.graph.node)
    for function in model.functions:
        yield from _nodes_of(function.node)


def _nodes_of(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    for node in nodes:
        yield node
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _nodes_of(attribute.g.node)
            for graph in attribute.graphs:
                yield from _nodes_of(graph.node)


def _changes(node: onnx.NodeProto, current: int, target: int) -> bool:
    if node.domain not in ("", "ai.onnx") or (current >= 13 and node.op_type in _ADDITIVE):
        return False
    try:
        before = defs.get_schema(node.op_type, current, "")
        after = defs.get_schema(node.op_type, target, "")
    except defs.SchemaError:
        return False  # a function of the model's own; anything else fails where the file is first run
    if after.deprecated:
        return True
    return before.since_version != after.since_version and _signature(before) != _signature(after)


def _signature(schema: defs.OpSchema) -> tuple[object, ...]:
    """What a node's meaning depends on besides its types: most new versions of an operator only add types."""
    attributes = tuple(
        (name, str(attribute.type), attribute.required, attribute.default_value.SerializeToString())
        for name, attribute in sorted(schema.attributes.items())
    )
    return attributes, tuple((each.name, str(each.option)) for each in schema.inputs), len(schema.outputs)
