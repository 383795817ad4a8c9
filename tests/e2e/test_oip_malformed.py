"""Malformed, mutated and oversized messages over real gRPC: each gets a clear answer, and the server goes on."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator

import grpc
import numpy as np
import pytest
from tests.e2e.oip_server import MAX_MESSAGE_BYTES, Running, running_server

from everlearn_protos.oip import SERVICE, message, service


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running_server() as running:
        yield running


@pytest.fixture(scope="module")
def channel(server: Running) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.address) as connected:
        yield connected


def answer(channel: grpc.Channel, method: str, request: bytes) -> tuple[grpc.StatusCode, str]:
    """Sends bytes as they are."""
    try:
        channel.unary_unary(f"/{SERVICE}/{method}")(request, timeout=120)
    except grpc.RpcError as error:
        return error.code(), error.details()
    return grpc.StatusCode.OK, ""


def good_requests() -> list[bytes]:
    kind = message("ModelInferRequest")
    typed = kind(model_name="colours", id="7")
    tensor = typed.inputs.add(name="features", datatype="FP32", shape=[1, 3])
    tensor.contents.fp32_contents.extend([0.1, 0.2, 0.3])
    raw = kind(model_name="colours", raw_input_contents=[np.arange(12, dtype=np.uint8).tobytes()])
    raw.inputs.add(name="image", datatype="UINT8", shape=[1, 2, 2, 3])
    raw.outputs.add(name="scores").parameters["classification"].int64_param = 2
    raw.parameters["timeout"].int64_param = 5_000_000
    text = kind(model_name="colours", raw_input_contents=[b"\x03\0\0\0abc"])
    text.inputs.add(name="encoded", datatype="BYTES", shape=[1])
    return [request.SerializeToString() for request in (typed, raw, text)]


def mutated(request: bytes, dice: random.Random) -> bytes:
    data = bytearray(request)
    for _ in range(dice.randint(1, 3)):
        at = dice.randrange(len(data))
        match dice.randrange(5):
            case 0:
                data[at] = dice.randrange(256)
            case 1:
                data[at] ^= 1 << dice.randrange(8)
            case 2:
                data[at:at] = dice.randbytes(dice.randint(1, 12))
            case 3:
                data[at : at + dice.randint(1, 12)] = b"\0"
            case _:
                del data[max(at, 1) :]
    return bytes(data)


def test_no_mutated_message_is_answered_as_a_fault_of_ours(channel: grpc.Channel) -> None:
    dice = random.Random(20261121)
    codes: Counter[grpc.StatusCode] = Counter()
    for n in range(300):
        data = dice.randbytes(dice.randint(1, 80)) if n % 10 == 9 else mutated(dice.choice(good_requests()), dice)
        code, text = answer(channel, "ModelInfer", data)
        assert code not in {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN}, (data, text)
        assert text or code is grpc.StatusCode.OK
        codes[code] += 1
    assert codes[grpc.StatusCode.INVALID_ARGUMENT] > 100, codes
    assert answer(channel, "ModelInfer", good_requests()[0])[0] is grpc.StatusCode.OK


@pytest.mark.parametrize("method", [method.name for method in service().methods if not method.server_streaming])
def test_every_method_refuses_noise_with_text(channel: grpc.Channel, method: str) -> None:
    code, text = answer(channel, method, b"\x0a\xff\xff\xff\xff\x01noise")
    assert code in {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNIMPLEMENTED}
    assert "not a valid inference." in text or "not offered" in text


def test_a_stream_answers_noise_and_goes_on(channel: grpc.Channel) -> None:
    requests = [b"\xff" * 40, good_requests()[0], b"\x0a\xff", good_requests()[1]]
    replies = list(channel.stream_stream(f"/{SERVICE}/ModelStreamInfer")(iter(requests), timeout=120))
    errors = [message("ModelStreamInferResponse").FromString(reply).error_message for reply in replies]
    assert [bool(error) for error in errors] == [True, False, True, False]


def test_a_message_over_the_limit_is_refused_with_the_limit(channel: grpc.Channel) -> None:
    request = message("ModelInferRequest")(model_name="colours", raw_input_contents=[bytes(MAX_MESSAGE_BYTES)])
    code, text = answer(channel, "ModelInfer", request.SerializeToString())
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert f"takes at most {MAX_MESSAGE_BYTES}" in text


def test_a_very_long_name_does_not_overflow_the_headers(channel: grpc.Channel) -> None:
    kind = message("ModelInferRequest")
    for request in (kind(model_name="\N{PILE OF POO}" * 50_000), kind(model_name="colours")):
        request.inputs.add(name="\N{PILE OF POO}" * 50_000, datatype="FP32" * 50_000, shape=[1] * 10_000)
        code, text = answer(channel, "ModelInfer", request.SerializeToString())
        assert code in {grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT}, text


def test_a_forged_shape_allocates_nothing(channel: grpc.Channel) -> None:
    request = message("ModelInferRequest")(model_name="colours", raw_input_contents=[bytes(12)])
    request.inputs.add(name="image", datatype="UINT8", shape=[1, 2**40, 2**40, 3])
    code, text = answer(channel, "ModelInfer", request.SerializeToString())
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "got 12" in text
