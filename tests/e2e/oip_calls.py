"""How the tests of the Open Inference Protocol call it, with the unmodified tritonclient."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from tests.e2e.oip_server import Running, running_server
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running_server() as running:
        yield running


@pytest.fixture
def client(server: Running) -> Iterator[Any]:
    server.serving.__init__()  # type: ignore[misc]  # a fresh state for each test on one server
    with triton.InferenceServerClient(server.address) as connected:
        yield connected


def features(rows: int = 1, width: int = 3, dtype: str = "FP32", name: str = "features") -> Any:
    tensor = triton.InferInput(name, [rows, width], dtype)
    values = np.tile(np.array([0.1, 0.7, 0.2], np.float32), (rows, 2))[:, :width]
    tensor.set_data_from_numpy(values.astype({"FP32": np.float32, "FP64": np.float64, "INT64": np.int64}[dtype]))
    return tensor


def refused(call: Any, status: str, *texts: str) -> str:
    with pytest.raises(InferenceServerException) as caught:
        call()
    assert caught.value.status() == f"StatusCode.{status}"
    for text in texts:
        assert text in caught.value.message()
    return str(caught.value.message())


def wire_input(name: str, datatype: str, shape: list[int], **contents: Any) -> Any:
    tensor = service_pb2.ModelInferRequest.InferInputTensor(name=name, datatype=datatype, shape=shape)
    if contents:
        tensor.contents.CopyFrom(service_pb2.InferTensorContents(**contents))
    return tensor


def typed(*, fp32: list[float]) -> Any:
    return wire_input("features", "FP32", [1, 3], fp32_contents=fp32)


def wire_error(server: Running, request: Any) -> Any:
    with grpc.insecure_channel(server.address) as channel, pytest.raises(grpc.RpcError) as caught:
        service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request, timeout=120)
    return caught.value


def refused_wire(server: Running, field: str, *, inputs: list[Any], raw: list[bytes]) -> str:
    from google.rpc import error_details_pb2
    from grpc_status import rpc_status

    error = wire_error(
        server, service_pb2.ModelInferRequest(model_name="colours", inputs=inputs, raw_input_contents=raw)
    )
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT, error
    packed = {any_.TypeName(): any_ for any_ in rpc_status.from_call(error).details}
    violations = error_details_pb2.BadRequest.FromString(packed["google.rpc.BadRequest"].value).field_violations
    info = error_details_pb2.ErrorInfo.FromString(packed["google.rpc.ErrorInfo"].value)
    assert (info.domain, info.reason) == ("everlearn", "INVALID_INPUT")
    assert violations[0].field.startswith(field)
    assert error.details().startswith(field)
    return str(error.details())
