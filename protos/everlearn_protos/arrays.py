"""ndarray <-> everlearn.v1.Tensor, shared by both sides of the wire."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from everlearn_protos.v1 import tensor_pb2

_DTYPE_OF: dict[int, np.dtype[np.generic]] = {
    tensor_pb2.Tensor.UINT8: np.dtype("u1"),
    tensor_pb2.Tensor.FLOAT16: np.dtype("<f2"),
    tensor_pb2.Tensor.FLOAT32: np.dtype("<f4"),
    tensor_pb2.Tensor.INT64: np.dtype("<i8"),
}
_CODE_OF = {dtype: code for code, dtype in _DTYPE_OF.items()}


def to_tensor(array: npt.NDArray[np.generic]) -> tensor_pb2.Tensor:
    """Copies an array into a Tensor. Raises ValueError for a dtype that has no code.

    >>> to_tensor(np.zeros((2, 3), np.float32)).shape
    [2, 3]
    """
    dtype = array.dtype.newbyteorder("<") if array.dtype.itemsize > 1 else array.dtype
    if dtype not in _CODE_OF:
        raise ValueError(f"dtype {array.dtype} cannot be sent; use one of {', '.join(map(str, _CODE_OF))}")
    data = np.ascontiguousarray(array, dtype=dtype).tobytes()
    return tensor_pb2.Tensor(data_type=_CODE_OF[dtype], shape=array.shape, data=data)  # type: ignore[arg-type]  # enum


def from_tensor(tensor: tensor_pb2.Tensor) -> npt.NDArray[np.generic]:
    """A read-only view on the Tensor's bytes.

    Raises ValueError where type, shape and byte count disagree: checked before anything is allocated.
    """
    dtype = _DTYPE_OF.get(tensor.data_type)
    if dtype is None:
        raise ValueError(f"data_type {tensor.data_type} is unknown; use UINT8, FLOAT16, FLOAT32 or INT64")
    shape = tuple(tensor.shape)
    if len(shape) > 8 or any(axis < 0 for axis in shape):
        raise ValueError(f"shape {list(shape[:9])} is not a shape: at most 8 axes, none negative")
    expected = math.prod(shape) * dtype.itemsize
    if len(tensor.data) != expected:
        raise ValueError(f"shape {list(shape)} of {dtype} needs {expected} bytes, data has {len(tensor.data)}")
    return np.frombuffer(tensor.data, dtype).reshape(shape)
