"""Checks and surgery on a foreign ONNX graph, on the data alone: nothing here runs it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import onnx
from onnx import TensorProto, defs

from everlearn.errors import BackboneError

MAX_BYTES = (1 << 31) - 1
"""protobuf's limit for one message."""
_SHOWN = 80
"""Characters of a name in an error's text: whoever made the file has chosen it."""
DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})
"""Of operators that ONNX Runtime brings along."""


def parse(data: bytes) -> onnx.ModelProto:
    """The model in a file's bytes. Raises BackboneError if there is none, or if it may not be run here.

    Refused are external data (in initializers, attributes, sparse tensors, subgraphs, training graphs: wherever a
    tensor may be), functions, operators of other domains than `DOMAINS`, and unknown ones.
    """
    if len(data) > MAX_BYTES:
        raise BackboneError(f"the file has {len(data)} bytes; one ONNX file holds at most {MAX_BYTES}")
    try:
        model = onnx.load_model_from_string(data)
    # protobuf's DecodeError, which this package may not import by name.
    except Exception as error:
        raise BackboneError(f"not an ONNX file ({type(error).__name__})") from error
    # Before the checker, which follows some paths to see whether they exist.
    for tensor in _tensors(model):
        if tensor.data_location == TensorProto.EXTERNAL or len(tensor.external_data):
            raise BackboneError(
                f"tensor {_brief(tensor.name)} lies in another file; weights must be inside the ONNX file"
            )
    if model.functions:
        raise BackboneError("the file defines functions of its own; export it with them inlined")
    try:
        _refuse_operators(model)
        onnx.checker.check_model(model)
    except BackboneError:
        raise
    # The checker's errors, and what names that are no text lead to.
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        raise BackboneError(f"not a valid ONNX model: {reason}") from error
    return model


def image_input(model: onnx.ModelProto) -> onnx.ValueInfoProto:
    """The one input, float32 [N or 1, 3, H, W]. Raises BackboneError for anything else."""
    initialised = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in initialised]
    if len(inputs) != 1:
        shown = _some(value.name for value in inputs)
        raise BackboneError(f"the graph has {len(inputs)} inputs {shown}; one is needed")
    kind = inputs[0].type.tensor_type
    axes = axes_of(inputs[0])
    if kind.elem_type != TensorProto.FLOAT or len(axes) != 4 or axes[1] not in (3, None) or axes[0] not in (1, None):
        found = f"{TensorProto.DataType.Name(kind.elem_type)} {['?' if axis is None else axis for axis in axes[:8]]}"
        raise BackboneError(
            f"input {_brief(inputs[0].name)} is {found}; float32 [N, 3, H, W] is needed, N dynamic or 1"
        )
    return inputs[0]


def axes_of(value: onnx.ValueInfoProto) -> list[int | None]:
    """Sizes of a tensor's axes; None where dynamic."""
    return [axis.dim_value if axis.HasField("dim_value") else None for axis in value.type.tensor_type.shape.dim]


def feature_output(model: onnx.ModelProto, wanted: str | None) -> str:
    """Name of the feature tensor: the one declared, or the only output. Raises BackboneError where it is unclear."""
    field = "spec.backbone.output"
    outputs: list[str] = [value.name for value in model.graph.output]
    if wanted is None:
        if len(outputs) != 1:
            raise BackboneError(
                f"the graph has outputs {_some(outputs)}; declare which is the feature vector", field=field
            )
        return outputs[0]
    produced = [name for node in model.graph.node for name in node.output if name]
    if wanted not in produced:
        raise BackboneError(
            f"the graph has no tensor {wanted!r}; its outputs are {_some(outputs)}, and the last inner ones "
            f"{_some(produced[-6:])}",
            field=field,
        )
    return wanted


def trunk_graph(
    model: onnx.ModelProto, source: str, output: str, height: int, width: int, *, flatten: bool
) -> onnx.ModelProto:
    """`pixels` [N, 3, height, width] -> `features`, from input `source` to tensor `output`; the rest is left out.

    Shapes noted inside go too: they may pin the batch that is to be dynamic. Raises BackboneError if the features do
    not depend on the image.
    """
    trunk = onnx.ModelProto()
    trunk.CopyFrom(model)
    for name in ("doc_string", "domain", "model_version", "metadata_props", "training_info", "functions"):
        trunk.ClearField(name)
    graph = trunk.graph
    used = _prune(graph, output)
    if source not in used:
        raise BackboneError(f"tensor {output!r} does not depend on the image", field="spec.backbone.output")
    for name in ("input", "output", "value_info", "doc_string", "metadata_props", "quantization_annotation"):
        graph.ClearField(name)
    taken = {name: f"{name}.inner" for name in ("pixels", "features")}
    last = "features.flat" if flatten else "features"
    _rename(graph, {**taken, source: "pixels", output: last})
    if flatten:
        graph.node.append(onnx.helper.make_node("Flatten", [last], ["features"], name="features", axis=1))
    graph.name = "trunk"
    graph.input.append(onnx.helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["N", 3, height, width]))
    graph.output.append(onnx.helper.make_tensor_value_info("features", TensorProto.FLOAT, None))
    return trunk


def _tensors(message: Any) -> Iterator[onnx.TensorProto]:
    """Every tensor anywhere below a protobuf message: whatever field a new ONNX version may add, it is seen."""
    if isinstance(message, onnx.TensorProto):
        yield message
        return
    for descriptor, value in message.ListFields():
        if descriptor.message_type is None:
            continue
        for part in value if hasattr(value, "add") else [value]:
            yield from _tensors(part)


def _refuse_operators(model: onnx.ModelProto) -> None:
    versions = {imported.domain: imported.version for imported in model.opset_import}
    foreign = sorted((versions.keys() | {node.domain for node in _nodes(model.graph)}) - DOMAINS)
    if foreign:
        allowed = sorted(DOMAINS - {""})
        raise BackboneError(f"operators of {_some(foreign)} are not known; allowed are those of {allowed}")
    for node in _nodes(model.graph):
        # ONNX Runtime checks its own domain; onnx has no schemas for it.
        if node.domain == "com.microsoft":
            continue
        domain = "" if node.domain == "ai.onnx" else node.domain
        version = versions.get(domain, versions.get("ai.onnx") if domain == "" else None)
        if version is None:
            raise BackboneError(
                f"operator {_brief(node.op_type)} is of domain {_brief(domain or 'ai.onnx')}, which is not imported"
            )
        if not 0 < version < 2**31:
            raise BackboneError(f"opset {version} is not known; the newest is {defs.onnx_opset_version()}")
        try:
            defs.get_schema(node.op_type, version, domain)
        except defs.SchemaError as error:
            raise BackboneError(f"there is no operator {_brief(node.op_type)} in opset {version}") from error


def _brief(name: str) -> str:
    return repr(name[:_SHOWN])


def _some(names: Iterable[str]) -> list[str]:
    return [name[:_SHOWN] for name in islice(names, 6)]


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for inner in _subgraphs(node):
            yield from _nodes(inner)


def _subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _prune(graph: onnx.GraphProto, output: str) -> set[str]:
    """Leaves the nodes and weights that `output` needs; returns the names of all tensors they read."""
    maker = {name: index for index, node in enumerate(graph.node) for name in node.output if name}
    needed: set[int] = set()
    used: set[str] = set()
    waiting = [output]
    while waiting:
        name = waiting.pop()
        if name in used or not name:
            continue
        used.add(name)
        index = maker.get(name)
        if index is None or index in needed:
            continue
        needed.add(index)
        node = graph.node[index]
        waiting.extend(node.input)
        # A subgraph reads outer tensors by name; its own names are harmless here.
        waiting.extend(name for inner in _subgraphs(node) for name in _read_below(inner))
    kept = [graph.node[index] for index in sorted(needed)]
    _replace(graph.node, kept)
    _replace(graph.initializer, [tensor for tensor in graph.initializer if tensor.name in used])
    _replace(graph.sparse_initializer, [t for t in graph.sparse_initializer if t.values.name in used])
    return used


def _read_below(graph: onnx.GraphProto) -> Iterator[str]:
    yield from (value.name for value in graph.output)
    for node in _nodes(graph):
        yield from node.input
        yield from (value.name for inner in _subgraphs(node) for value in inner.output)


def _replace(field: Any, kept: list[Any]) -> None:
    copies = [type(item)() for item in kept]
    for copy, item in zip(copies, kept, strict=True):
        copy.CopyFrom(item)
    del field[:]
    field.extend(copies)


def _rename(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    """Renames tensors wherever they are made or read, in subgraphs too."""
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
        for inner in _subgraphs(node):
            _rename(inner, names)
    for tensor in graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
    for sparse in graph.sparse_initializer:
        sparse.values.name = names.get(sparse.values.name, sparse.values.name)
    for value in (*graph.input, *graph.output, *graph.value_info):
        value.name = names.get(value.name, value.name)
