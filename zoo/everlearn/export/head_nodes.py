"""Nodes and tensors of what stands behind a trunk in an exported graph."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper


def node(op_type: str, inputs: Sequence[str], output: str, *, name: str = "", **attributes: int) -> onnx.NodeProto:
    """One node with one output. `name`: where there are several of the type."""
    return helper.make_node(op_type, inputs, [output], name=name or f"head/{op_type}", **attributes)


def tensor(name: str, values: npt.NDArray[np.float32] | npt.NDArray[np.int64]) -> TensorProto:
    """An initialiser of numbers."""
    # raw_data: field by field, a head of many classes takes far longer.
    kind = TensorProto.FLOAT if values.dtype == np.float32 else TensorProto.INT64
    little = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<"))
    return TensorProto(name=name, data_type=kind, dims=values.shape, raw_data=little.tobytes())


def text_tensor(name: str, texts: Sequence[str]) -> TensorProto:
    """An initialiser of strings."""
    table = TensorProto(name=name, data_type=TensorProto.STRING, dims=[len(texts)])
    table.string_data.extend(text.encode() for text in texts)
    return table
