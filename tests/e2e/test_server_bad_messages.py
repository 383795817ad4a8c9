"""Bytes that are no message, on every method: always a clear status, never a crash, never a leak."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
import pytest
from google.longrunning import operations_proto_pb2
from google.protobuf.duration_pb2 import Duration
from tests import tiny
from tests.e2e.server_calls import Stubs, batch, encoded, predict_request, refused
from tests.real_server import RealServer

from everlearn_client import Client
from everlearn_protos.v1 import export_pb2, learn_pb2, models_pb2, predict_pb2, server_info_pb2

MALFORMED = (b"\xff\xff\xff", b"\x0a\x05abc", b"\x0a\x01\xff", b"\x0b" * 200)
"""A tag that does not end, a field shorter than announced, a string that is not UTF-8, groups that do not end."""
SAMPLES = 250
"""Of each kind."""


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
        return list(channel.stream_stream(path)(iter([data]), timeout=10))
    if method.server_streaming:
        return list(channel.unary_stream(path)(data, timeout=10))
    return [channel.unary_unary(path)(data, timeout=10)]


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
        refused(lambda request=request: stubs.operations.WaitOperation(request, timeout=5), "NOT_FOUND")
    known = stubs.operations.ListOperations(operations_proto_pb2.ListOperationsRequest()).operations[0].name
    for seconds in (-(2**62), 2**62):
        request = wait(name=known, timeout=Duration(seconds=seconds))
        assert stubs.operations.WaitOperation(request, timeout=5).done
    long = "models/" + "a" * 3_000_000
    found = refused(lambda: stubs.models.GetModel(models_pb2.GetModelRequest(name=long)), "INVALID_ARGUMENT")
    assert len(found.message) < 1100
    deep = "[" * 1_000_000
    refused(lambda: stubs.models.PlanModel(models_pb2.PlanModelRequest(declaration=deep)), "INVALID_ARGUMENT")


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """One to four edits: bytes flipped, cut out, doubled, put in, or the end lost."""
    found = bytearray(data)
    for _ in range(rng.integers(1, 5)):
        at = int(rng.integers(0, max(1, min(len(found), 80) if rng.random() < 0.7 else len(found))))
        match int(rng.integers(0, 5)):
            case 0 if found:
                found[at % len(found)] ^= 1 << int(rng.integers(0, 8))
            case 1:
                del found[at : at + int(rng.integers(1, 9))]
            case 2:
                found[at:at] = found[at : at + int(rng.integers(1, 33))]
            case 3:
                found[at:at] = rng.bytes(int(rng.integers(1, 9)))
            case _:
                del found[int(rng.integers(0, len(found) + 1)) :]
    return bytes(found)


def altered(message: Any, rng: np.random.Generator) -> bytes:
    """A message that parses, with one to three of its values made strange."""
    for _ in range(rng.integers(1, 4)):
        holders = list(_holders(message))
        holder, field = holders[int(rng.integers(0, len(holders)))]
        repeated = field.is_repeated
        values = list(getattr(holder, field.name)) if repeated else [getattr(holder, field.name)]
        at = int(rng.integers(0, len(values)))
        values[at] = _strange(values[at], field, rng)
        if repeated and rng.random() < 0.3:
            values = values[:-1] if rng.random() < 0.5 else values * 3
        if repeated:
            del getattr(holder, field.name)[:]
            getattr(holder, field.name).extend(values)
        else:
            setattr(holder, field.name, values[0])
    return bytes(message.SerializeToString())


def _holders(message: Any) -> Iterator[tuple[Any, Any]]:
    for field, value in message.ListFields():
        if field.type == field.TYPE_MESSAGE:
            yield from _holders(value)
        else:
            yield message, field


def _strange(value: Any, field: Any, rng: np.random.Generator) -> Any:
    if isinstance(value, bytes):
        return mutated(value, rng)
    if isinstance(value, str):
        return str(rng.choice(["", " ", "\x00", "\U0001f980" * 70, value * 40, value + "/..", "9" * 40]))
    if isinstance(value, bool):
        return not value
    if field.type == field.TYPE_ENUM:
        return int(rng.integers(0, 7))
    small = int(rng.choice([0, 1, 2, 3, 4, 5, 2**31 - 1]))
    return small if field.type in (field.TYPE_UINT64, field.TYPE_UINT32) else int(rng.choice([small, -1, 2**40]))


def seeds() -> list[Any]:
    png, jpeg = encoded(tiny.images(1, 0)[0]), encoded(tiny.images(1, 0, side=40)[0], "JPEG")
    floats = np.zeros((2, 3, 16, 16), np.float32)
    return [tiny.images(2, 0), [png, jpeg], floats, np.ones((2, 16), np.float32)]


def learned(stubs: Stubs, rng: np.random.Generator, digest: str) -> Iterator[str]:
    """How each mutated batch ended: the kind of its answer, or the status."""
    forms = seeds()
    for index in range(SAMPLES):
        with stubs.learn("fuzzed", "fuzzer", feature_digest=digest if index % 4 == 3 else "") as stream:
            good = batch(stream.opened.durable_sequence + 1, forms[index % 4], ["a", "b"])
            stream.send(altered(good, rng) if index % 8 < 5 else mutated(good.SerializeToString(), rng))
            try:
                answers = stream.finish()
            except grpc.RpcError as error:
                yield error.code().name
            else:
                yield str(answers[0].WhichOneof("response"))


def predicted(stubs: Stubs, rng: np.random.Generator) -> Iterator[str]:
    """The same for predictions."""
    forms = seeds()
    call = stubs.channel.unary_unary("/everlearn.v1.PredictService/Predict")
    for index in range(SAMPLES):
        good = predict_request("fuzzed", forms[index % 4], top_k=2, scores=True)
        try:
            call(altered(good, rng) if index % 8 < 5 else mutated(good.SerializeToString(), rng), timeout=10)
        except grpc.RpcError as error:
            yield error.code().name
        else:
            yield "OK"


def test_five_hundred_mutated_messages_break_nothing_and_leak_nothing(
    server: RealServer, stubs: Stubs, client: Client, backbone: Path
) -> None:
    digest = server.declare(tiny.declaration(backbone, name="fuzzed")).status.input.feature_digest
    client.learn("fuzzed", [(tiny.images(4, label), [f"{label}"] * 4) for label in range(3)])
    rng = np.random.default_rng(20261121)
    process = psutil.Process(server.pid)
    for _ in range(50):
        client.predict("fuzzed", tiny.images(2, 0))
    before = process.memory_info().rss
    ends = Counter(predicted(stubs, rng))
    ends += Counter(learned(stubs, rng, digest))
    assert ends.total() == 2 * SAMPLES
    assert not {"INTERNAL", "UNKNOWN", "DEADLINE_EXCEEDED", "UNAVAILABLE"} & set(ends), ends
    assert ends["INVALID_ARGUMENT"] > SAMPLES / 4, "the mutations were too tame"
    assert min(ends["OK"], ends["received"], ends["rejected"]) > SAMPLES / 20, "the mutations were too wild"
    assert (process.memory_info().rss - before) / 2**20 < 50
    assert "internal error" not in server.log
    assert client.learn("fuzzed", [(tiny.images(2, 0), ["a"] * 2)]).durable_samples == 2
