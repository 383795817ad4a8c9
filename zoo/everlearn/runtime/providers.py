"""What ONNX Runtime really runs on, found out before there is a trunk to run."""

from __future__ import annotations

from collections.abc import Sequence

from onnx import TensorProto, helper

from everlearn.errors import BackboneError, UnavailableError
from everlearn.runtime.session import TrunkSession


def providers_in_use(providers: Sequence[str]) -> tuple[str, ...]:
    """The execution providers of a session that was asked for these, first choice first.

    Raises UnavailableError where the first one cannot be had.

    >>> providers_in_use(("CPUExecutionProvider",))
    ('CPUExecutionProvider',)
    """
    try:
        return TrunkSession(_smallest_trunk(), providers=providers).providers
    except BackboneError as error:  # of a graph that any provider runs
        raise UnavailableError(f"{providers[0]} does not work here: {error.message}") from error


def _smallest_trunk() -> bytes:
    graph = helper.make_graph(
        [helper.make_node("Identity", ["pixels"], ["features"])],
        "identity",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["N", 1])],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["N", 1])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    return bytes(model.SerializeToString())
