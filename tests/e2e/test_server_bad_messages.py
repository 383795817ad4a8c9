"""Bytes that are no message, on every method: always a clear status, never a crash. More of it: faults/fuzz_run.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc
import pytest
from google.longrunning import operations_proto_pb2
from google.protobuf.duration_pb2 import Duration
from tests import tiny
from tests.e2e.server_calls import Stubs, predict_request, refused
from tests.real_server import RealServer

from everlearn_client import Client
from everlearn_protos.v1 import export_pb2, learn_pb2, models_pb2, predict_pb2, server_info_pb2

MALFORMED = (b"\xff\xff\xff", b"\x0a\x05abc", b"\x0a\x01\xff", b"\x0b" * 200)
"""A tag that does not end, a field shorter than announced, a string that is not UTF-8, groups that do not end."""


def methods() -> list[Any]:
    services: list[Any] = []
    for module in (models_pb2, learn_pb2, predict_pb2, export_pb2, server_info_pb2):
        services += module.DESCRIPTOR.services_by_name.values()
    ours = [method for service in services for method in service.methods]
    names = ("GetOperation", "ListOperations", "WaitOperation", "CancelOperation", "DeleteOperation")
    operations = operations_proto_pb2.DESCRIPTOR.services_by_name["Operations"]
    return [*ours, *(operations.methods_by_name[name] for name in names)]


@pytest.fixture(scope="module", autouse=True)
def model(server: RealServer, client: Client, backbone: Path) -> None:
    server.declare(tiny.declaration(backbone))
    client.learn("tiny", [(tiny.images(4, 0), ["a"] * 4)])


def send(channel: grpc.Channel, method: Any, data: bytes) -> list[bytes]:
    path = f"/{method.containing_service.full_name}/{method.name}"
    if method.client_streaming:
        return list(channel.stream_stream(path)(iter([data]), timeout=120))
    if method.server_streaming:
        return list(channel.unary_stream(path)(data, timeout=120))
    return [channel.unary_unary(path)(data, timeout=120)]


@pytest.mark.parametrize("method", methods(), ids=lambda method: method.full_name)
def test_malformed_bytes_are_an_invalid_argument_and_the_connection_lives(stubs: Stubs, method: Any) -> None:
    for data in MALFORMED:
        if data == b"\x0a\x01\xff" and not method.input_type.fields:
            continue  # an unknown field may hold anything
        if method.name == "PredictStream":
            (answer,) = send(stubs.channel, method, data)
            assert predict_pb2.PredictStreamResponse.FromString(answer).error.code == "INVALID_ARGUMENT"
        elif data != b"\x0a\x01\xff" or _first_is_text(method.input_type):
            found = refused(lambda data=data: send(stubs.channel, method, data), "INVALID_ARGUMENT")
            assert found.metadata["field"]
            assert len(found.message) < 500
    assert stubs.info.GetServerInfo(server_info_pb2.GetServerInfoRequest()).version


def _first_is_text(message: Any) -> bool:
    field = message.fields_by_number.get(1)
    return field is not None and field.type == field.TYPE_STRING


@pytest.mark.parametrize("method", methods(), ids=lambda method: method.full_name)
def test_an_empty_message_never_breaks_a_method(stubs: Stubs, method: Any) -> None:
    assert _status(stubs.channel, method, b"") in ("OK", "INVALID_ARGUMENT", "NOT_FOUND")


def _status(channel: grpc.Channel, method: Any, data: bytes) -> str:
    try:
        send(channel, method, data)
    except grpc.RpcError as error:
        return str(error.code().name)
    return "OK"


def test_an_oversized_message_is_refused_with_the_limit_and_the_connection_lives(stubs: Stubs, client: Client) -> None:
    limit = client.info().max_message_bytes
    assert limit == 4 * 2**20
    large = predict_request("tiny", [bytes(5 * 2**20)])
    name = "everlearn.v1.PredictRequest"
    refused(
        lambda: stubs.predictions.Predict(large), "INVALID_ARGUMENT", field=name, reason="TOO_LARGE", says=f"{limit}"
    )
    small = predict_request("tiny", tiny.images(1, 0))
    first, second = stubs.predictions.PredictStream(iter([large, small]))
    assert (first.error.code, first.error.field) == ("INVALID_ARGUMENT", name)
    assert second.response.predictions
    assert client.predict("tiny", tiny.images(1, 0)).top


def test_beyond_what_grpc_itself_takes_the_connection_still_lives(stubs: Stubs) -> None:
    with pytest.raises(grpc.RpcError) as refusal:
        stubs.predictions.Predict(predict_request("tiny", [bytes(17 * 2**20)]))
    assert refusal.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "larger than max" in str(refusal.value.details())
    assert stubs.predictions.Predict(predict_request("tiny", tiny.images(1, 0))).predictions


def test_hostile_values_of_right_types_are_answered(stubs: Stubs) -> None:
    wait = operations_proto_pb2.WaitOperationRequest
    for seconds in (-(2**62), 2**62):
        request = wait(name="operations/none", timeout=Duration(seconds=seconds, nanos=-(2**31)))
        refused(lambda request=request: stubs.operations.WaitOperation(request, timeout=120), "NOT_FOUND")
    known = stubs.operations.ListOperations(operations_proto_pb2.ListOperationsRequest()).operations[0].name
    for seconds in (-(2**62), 2**62):
        request = wait(name=known, timeout=Duration(seconds=seconds))
        assert stubs.operations.WaitOperation(request, timeout=120).done
    long = "models/" + "a" * 3_000_000
    found = refused(lambda: stubs.models.GetModel(models_pb2.GetModelRequest(name=long)), "INVALID_ARGUMENT")
    assert len(found.message) < 1100
    deep = "[" * 1_000_000
    refused(lambda: stubs.models.PlanModel(models_pb2.PlanModelRequest(declaration=deep)), "INVALID_ARGUMENT")
