"""What a GPU's allocators hand out after a run is not what the run before was given."""

from __future__ import annotations

import gc

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import pytest
import torch
from tests.gpu.device import DEVICE, ON_ALL, ON_TORCH, PROVIDER

from everlearn.learners.gradient.batches import sent
from everlearn.runtime.session import open_session, session_options
from everlearn.runtime.staging import run_wiped

ROWS, VALUES = 64, 3 * 64 * 64
MARK = 0.7251953125
"""A float that nobody else has."""
pytestmark = [
    *ON_TORCH,
    pytest.mark.skipif(DEVICE != "cuda", reason="the CPU's allocator overwrites what it frees, if told to"),
]


def summing() -> ort.InferenceSession:
    """A network that reads its input and keeps nothing of it."""
    from onnx import TensorProto, helper

    graph = helper.make_graph(
        [helper.make_node("ReduceSum", ["image"], ["features"], keepdims=0)],
        "sum",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", VALUES])],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, [])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    return open_session(model.SerializeToString(), session_options(1), (PROVIDER,), what="a sum")


def handed_out_next() -> npt.NDArray[np.float32]:
    """What lies in the memory of that size that ONNX Runtime hands out now."""
    gc.collect()
    return ort.OrtValue.ortvalue_from_shape_and_type((ROWS, VALUES), np.float32, "cuda", 0).numpy()


@pytest.mark.skipif(*ON_ALL[-1].args, **ON_ALL[-1].kwargs)
def test_nothing_of_a_run_lies_in_onnx_runtimes_memory() -> None:
    values = np.full((ROWS, VALUES), MARK, np.float32)
    session = summing()
    plain = ort.OrtValue.ortvalue_from_numpy(values, "cuda", 0)
    del plain
    assert (handed_out_next() == MARK).any(), "the control: who does not overwrite it leaves it"
    assert run_wiped(session, "image", values, "features", device="cuda") == pytest.approx(MARK * values.size, rel=1e-3)
    assert not (handed_out_next() == MARK).any()


def test_nothing_of_a_batch_lies_in_pinned_memory() -> None:
    values = np.full((ROWS, VALUES), MARK, np.float32)
    plain = torch.from_numpy(values).pin_memory()
    plain.to(DEVICE)
    del plain
    assert pinned_next().eq(MARK).any(), "the control: who does not overwrite it leaves it"
    there = sent(values, torch.device(DEVICE))
    torch.cuda.synchronize()
    assert there.eq(MARK).all()
    assert not pinned_next().eq(MARK).any()


def pinned_next() -> torch.Tensor:
    """What lies in the pinned memory of that size that torch hands out now."""
    gc.collect()
    torch.cuda.synchronize()
    return torch.empty((ROWS, VALUES), pin_memory=True).clone()
