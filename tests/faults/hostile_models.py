"""Model files that mean harm: ONNX files that reach for others or for memory, and what only has a good name."""

from __future__ import annotations

import io
import os
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tests import tiny
from tests.bombs import field

SECRET = b"0123456789abcdef" * 400


def base() -> onnx.ModelProto:
    """An honest file."""
    return onnx.load_model_from_string(tiny.backbone_onnx())


def external_files(folder: Path) -> dict[str, Path]:
    """Files whose weights lie outside: the six forms of CVE-2022-25882 and its successors, each leading to a secret."""
    inside, outside = folder / "models", folder / "private"
    inside.mkdir(parents=True)
    outside.mkdir()
    secret = outside / "secret.bin"
    secret.write_bytes(SECRET)
    (inside / "beside.bin").write_bytes(SECRET)
    (inside / "symlink.bin").symlink_to(secret)
    os.link(secret, inside / "hardlink.bin")
    (inside / "folder").symlink_to(outside)
    locations = {
        "relative": "beside.bin",
        "parent": "../private/secret.bin",
        "absolute": str(secret),
        "symlink": "symlink.bin",
        "hard link": "hardlink.bin",
        "symlink of a folder": "folder/secret.bin",
    }
    made = {}
    for name, location in locations.items():
        model = base()
        weight = model.graph.initializer[0]
        weight.ClearField("raw_data")
        weight.data_location = TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", "0"), ("length", str(16 * 3 * 16 * 4))):
            weight.external_data.add(key=key, value=value)
        made[name] = inside / f"{name.replace(' ', '-')}.onnx"
        made[name].write_bytes(model.SerializeToString())
    return made


def _grown(model: onnx.ModelProto, nodes: list[onnx.NodeProto], *constants: tuple[str, np.ndarray]) -> onnx.ModelProto:
    """The features times (or plus) what the nodes make of `pooled`, under the name `more`."""
    graph = model.graph
    graph.node[-1].output[0] = "own"
    graph.node.extend([*nodes, helper.make_node("Add", ["own", "more"], ["vector"])])
    graph.initializer.extend(numpy_helper.from_array(values, name) for name, values in constants)
    return model


def by_the_pixels(model: onnx.ModelProto) -> onnx.ModelProto:
    """As many numbers as the image is bright."""
    nodes = [
        helper.make_node("ReduceSum", ["image"], ["sum"], keepdims=0),
        helper.make_node("Mul", ["sum", "million"], ["large"]),
        helper.make_node("Range", ["zero", "large", "one"], ["many"]),
        helper.make_node("ReduceMin", ["many"], ["more"], keepdims=1),
    ]
    numbers = [(name, np.array(value, np.float32)) for name, value in (("million", 1e6), ("zero", 0), ("one", 1))]
    return _grown(model, nodes, *numbers)


def by_what_is_found(model: onnx.ModelProto) -> onnx.ModelProto:
    """The square of how many pixels are not zero."""
    nodes = [
        helper.make_node("NonZero", ["image"], ["places"]),
        helper.make_node("Shape", ["places"], ["count"], start=1),
        helper.make_node("Concat", ["count", "count"], ["square"], axis=0),
        helper.make_node("ConstantOfShape", ["square"], ["zeros"]),
        helper.make_node("ReduceMin", ["zeros"], ["least"], keepdims=0),
        helper.make_node("Identity", ["least"], ["more"]),
    ]
    return _grown(model, nodes)


def by_a_reshape(model: onnx.ModelProto) -> onnx.ModelProto:
    """A shape out of pixels, inside a branch."""
    branch = helper.make_graph(
        [
            helper.make_node("Cast", ["flatly"], ["sizes"], to=TensorProto.INT64),
            helper.make_node("Expand", ["one", "sizes"], ["wide"]),
            helper.make_node("ReduceMin", ["wide"], ["least"], keepdims=0),
        ],
        "branch",
        [],
        [helper.make_tensor_value_info("least", TensorProto.FLOAT, None)],
    )
    nodes = [
        helper.make_node("Reshape", ["image", "flat"], ["flatly"]),
        helper.make_node("If", ["yes"], ["more"], then_branch=branch, else_branch=branch),
    ]
    constants = [("one", np.array(1, np.float32)), ("flat", np.array([-1])), ("yes", np.array(True))]
    return _grown(model, nodes, *constants)


def for_ever(model: onnx.ModelProto) -> onnx.ModelProto:
    """2^62 turns."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Identity", ["x"], ["y"])],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("y", TensorProto.FLOAT, None),
        ],
    )
    nodes = [helper.make_node("Loop", ["turns", "yes", "pooled"], ["turned"], body=body)]
    nodes.append(helper.make_node("ReduceMin", ["turned"], ["more"], keepdims=0))
    return _grown(model, nodes, ("turns", np.array(2**62)), ("yes", np.array(True)))


def without_end_of_memory(model: onnx.ModelProto) -> onnx.ModelProto:
    """A constant of 2^40 numbers in sixteen bytes."""
    nodes = [
        helper.make_node("ConstantOfShape", ["huge"], ["zeros"]),
        helper.make_node("ReduceMin", ["zeros"], ["more"], keepdims=0),
    ]
    return _grown(model, nodes, ("huge", np.array([2**20, 2**20])))


def huge_initializer(model: onnx.ModelProto) -> onnx.ModelProto:
    """A shape that no file holds."""
    model.graph.initializer[0].dims[0] = 2**50
    return model


def negative_initializer(model: onnx.ModelProto) -> onnx.ModelProto:
    """A shape that is none."""
    model.graph.initializer[0].dims[0] = -16
    return model


def cyclic(model: onnx.ModelProto) -> onnx.ModelProto:
    """The first node reads what the last one writes."""
    model.graph.node[0].input[0] = "vector"
    return model


def sparse_beyond(model: onnx.ModelProto) -> onnx.ModelProto:
    """Indices beyond the tensor."""
    weight = model.graph.initializer[0]
    sparse = model.graph.sparse_initializer.add(dims=[16, 3, 4, 4])
    sparse.values.CopyFrom(numpy_helper.from_array(np.ones(2, np.float32), weight.name))
    sparse.indices.CopyFrom(numpy_helper.from_array(np.array([-5, 2**40]), "indices"))
    del model.graph.initializer[:]
    return model


def deep(model: onnx.ModelProto) -> onnx.ModelProto:
    """Graphs inside graphs."""
    inner = helper.make_graph([], "inner", [], [])
    for _ in range(20):
        inner = helper.make_graph([helper.make_node("If", ["x"], ["y"], then_branch=inner)], "g", [], [])
    model.graph.node.append(helper.make_node("If", ["x"], ["z"], then_branch=inner, else_branch=inner))
    return model


def unknown_domain(model: onnx.ModelProto) -> onnx.ModelProto:
    """An operator that a library would bring."""
    model.opset_import.append(helper.make_opsetid("evil.ops", 1))
    model.graph.node[1].domain, model.graph.node[1].op_type = "evil.ops", "Run"
    return model


def opset_of_tomorrow(model: onnx.ModelProto) -> onnx.ModelProto:
    """No such version."""
    model.opset_import[0].version = 2**62
    return model


def ir_of_tomorrow(model: onnx.ModelProto) -> onnx.ModelProto:
    """No such version either."""
    model.ir_version = 2**62
    return model


def twice(model: onnx.ModelProto) -> onnx.ModelProto:
    """Two nodes write one tensor."""
    model.graph.node.append(helper.make_node("Relu", ["high"], ["active"]))
    return model


def short_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Fewer bytes than the shape needs."""
    model.graph.initializer[0].raw_data = b"abc"
    return model


def own_function(model: onnx.ModelProto) -> onnx.ModelProto:
    """One that calls itself."""
    node = helper.make_node("Again", ["a"], ["b"], domain="f")
    model.functions.append(helper.make_function("f", "Again", ["a"], ["b"], [node], [helper.make_opsetid("f", 1)]))
    return model


SPOILT: tuple[tuple[Callable[[onnx.ModelProto], onnx.ModelProto], str], ...] = (
    (by_the_pixels, "depends on the pixels"),
    (by_what_is_found, "depends on the pixels"),
    (by_a_reshape, "depends on the pixels"),
    (for_ever, "Loop, which may never end"),
    (huge_initializer, "not a valid ONNX model"),
    (negative_initializer, "not a valid ONNX model"),
    (cyclic, "not a valid ONNX model"),
    (sparse_beyond, "not a valid ONNX model"),
    (deep, "not a valid ONNX model"),
    (unknown_domain, "operators of"),
    (opset_of_tomorrow, "opset 4611686018427387904 is not known"),
    (ir_of_tomorrow, "not a valid ONNX model"),
    (twice, "not a valid ONNX model"),
    (short_weights, "not a valid ONNX model"),
    (own_function, "functions of its own"),
)
"""What is done to an honest file, and what is said of it."""


def archives() -> dict[str, bytes]:
    """What is not read, whatever its name says."""
    zipped, tarred, sevenfold = io.BytesIO(), io.BytesIO(), b"7z\xbc\xaf\x27\x1c" + bytes(64)
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("../../evil", b"x")
        archive.writestr("archive/data.pkl", b"\x80\x04cposix\nsystem\n(S'true'\ntR.")
    with tarfile.open(fileobj=tarred, mode="w") as tar:
        entry = tarfile.TarInfo("../../evil")
        entry.size = 1
        tar.addfile(entry, io.BytesIO(b"x"))
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    return {
        "zip": zipped.getvalue(),
        "tar": tarred.getvalue(),
        "7z": sevenfold,
        "gzip": b"\x1f\x8b\x08" + bytes(60),
        "pickle": b"\x80\x04cposix\nsystem\n(S'true'\ntR.",
        "numpy": b"\x93NUMPY\x01\x00" + bytes(100),
        "hdf5": b"\x89HDF\r\n\x1a\n" + bytes(100),
        "gguf": b"GGUF" + bytes(100),
        "html": b"<html><script>alert(1)</script></html>",
        "nothing": b"",
        "a-bottomless-graph": _bottomless(),
    }


def _bottomless() -> bytes:
    """A model's graph, its node, that node's attribute, its graph ..., two hundred times."""
    data = b""
    for _ in range(200):
        data = field(1, field(5, field(6, data)))
    return field(7, data)
