"""Every method of every service that the server reflects: no bomb and no noise gets through any of them.

The list comes from the running server, so that a method that is added is held to this without being named here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
import psutil
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from google.rpc import error_details_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_status import rpc_status
from tests import bombs
from tests.real_server import RealServer

from everlearn_protos.oip import message
from everlearn_protos.v1 import predict_pb2

NOISE = (b"\xff\xff\xff", b"\x0a\x05abc", b"\x1b" * 2000, b"\x0f\x01")
"""A tag that does not end, a field shorter than announced, groups, a wire type that is none."""
BOMBS = (b"\x98\x3f\x01" * 2**20, b"\x9a\x3f\x00" * 2**20, b"\x9a\x3f\xff\xff\xff\xff\x7f")
"""Millions of fields that nobody knows, which protobuf would keep one by one; and one that is longer than all."""


def reflected(channel: grpc.Channel) -> list[Any]:
    """Methods with descriptors, as any tool finds them."""
    database = ProtoReflectionDescriptorDatabase(channel)
    pool = DescriptorPool(database)
    return [method for name in database.get_services() for method in pool.FindServiceByName(name).methods]


@pytest.fixture(scope="module")
def channel(server: RealServer) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.address, [("grpc.max_send_message_length", -1)]) as connected:
        yield connected


@pytest.fixture(scope="module")
def methods(channel: grpc.Channel) -> list[Any]:
    found = reflected(channel)
    assert len({method.containing_service.full_name for method in found}) >= 9, "a service does not tell of itself"
    return found


def answer(channel: grpc.Channel, method: Any, data: bytes) -> tuple[str, list[str], str]:
    """The status, fields of BadRequest, and the text of the status or of an error inside the first response."""
    path = f"/{method.containing_service.full_name}/{method.name}"
    try:
        if method.client_streaming:
            first = next(channel.stream_stream(path)(iter([data]), timeout=120), b"")
        elif method.server_streaming:
            first = next(channel.unary_stream(path)(data, timeout=120), b"")
        else:
            first = channel.unary_unary(path)(data, timeout=120)
    except grpc.RpcError as error:
        status = rpc_status.from_call(error)
        bad = error_details_pb2.BadRequest()
        fields = [v.field for d in (status.details if status else ()) if d.Unpack(bad) for v in bad.field_violations]
        return error.code().name, fields, error.details() or ""
    if method.name == "PredictStream":  # each request has an answer of its own, and so has its error
        told = predict_pb2.PredictStreamResponse.FromString(first).error
        return told.code, [told.field], told.message
    if method.name == "ModelStreamInfer":
        text = message("ModelStreamInferResponse").FromString(first).error_message
        return ("INVALID_ARGUMENT", [text.partition(":")[0]], text) if text else ("OK", [], "")
    return "OK", [], ""


@pytest.mark.parametrize("data", NOISE + BOMBS, ids=lambda data: data[:4].hex())
def test_every_method_refuses_it_with_a_path_before_it_is_parsed(
    server: RealServer, channel: grpc.Channel, methods: list[Any], data: bytes
) -> None:
    process = psutil.Process(server.pid)
    before = process.memory_info().rss
    for method in methods:
        code, fields, text = answer(channel, method, data)
        if code == "UNIMPLEMENTED":
            assert "not offered" in text, method.full_name
            continue
        assert code == "INVALID_ARGUMENT", f"{method.full_name}: {code} {text}"
        assert fields, f"{method.full_name}: {text}"
        assert all(fields)
        assert len(text) < 500
    assert process.memory_info().rss - before < 64 * 2**20
    assert process.is_running()


def test_every_method_survives_an_empty_message(channel: grpc.Channel, methods: list[Any]) -> None:
    for method in methods:
        code, fields, text = answer(channel, method, b"")
        assert code in {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "UNIMPLEMENTED"}, f"{method.full_name}: {code} {text}"
        assert code != "INVALID_ARGUMENT" or all(fields), f"{method.full_name}: {text}"


@pytest.mark.parametrize("kind", ["learn", "infer"])
def test_bombs_of_known_fields_leave_no_trace(server: RealServer, channel: grpc.Channel, kind: str) -> None:
    if kind == "learn":
        call = channel.stream_stream("/everlearn.v1.LearnService/Learn")
    else:
        infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
    process = psutil.Process(server.pid)
    before = process.memory_info().rss
    for name, data in (bombs.learn_bombs() if kind == "learn" else bombs.infer_bombs()).items():
        with pytest.raises(grpc.RpcError) as refusal:
            list(call(iter([data]), timeout=120)) if kind == "learn" else infer(data, timeout=120)
        assert refusal.value.code() is grpc.StatusCode.INVALID_ARGUMENT, name
    assert process.memory_info().rss - before < 64 * 2**20


def test_the_connection_that_all_this_came_over_still_works(server: RealServer, channel: grpc.Channel) -> None:
    assert channel.unary_unary("/everlearn.v1.ServerInfoService/GetServerInfo")(b"", timeout=120)
    assert "Traceback" not in server.log
    assert "internal error" not in server.log
