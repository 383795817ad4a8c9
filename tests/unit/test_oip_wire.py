"""Splitting raw tensors off a ModelInferRequest: the same content as a full parse, and no copy."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.e2e.oip_server import ColourServing

from everlearn.errors import EverlearnError, InvalidError, PayloadTooLargeError
from everlearn.inputs.samples import Features
from everlearn_protos.oip import message
from everlearn_server.rpc.oip_tensors import read_samples
from everlearn_server.rpc.oip_wire import MAX_FIELDS, parse_infer
from everlearn_server.rpc.wire import parse

BIG = 1 << 24

requests = st.builds(
    lambda name, request_id, shapes, raws: message("ModelInferRequest")(
        model_name=name,
        id=request_id,
        inputs=[{"name": "x", "datatype": "FP32", "shape": shape} for shape in shapes],
        raw_input_contents=raws,
    ),
    st.text(max_size=40),
    st.text(max_size=300),
    st.lists(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=5), max_size=4),
    st.lists(st.binary(max_size=400), max_size=5),
)


@given(request=requests)
def test_splitting_keeps_all_that_a_full_parse_has(request: Any) -> None:
    rest, raw = parse_infer(message("ModelInferRequest"), request.SerializeToString(), max_bytes=BIG)
    assert [bytes(view) for view in raw] == list(request.raw_input_contents)
    rest.raw_input_contents.extend(bytes(view) for view in raw)
    assert rest == request


@settings(max_examples=300)
@given(request=requests, data=st.data())
def test_a_mutated_message_is_read_as_protobuf_reads_it_or_refused(request: Any, data: Any) -> None:
    mutated = bytearray(request.SerializeToString() or b"\0")
    for _ in range(data.draw(st.integers(1, 4))):
        mutated[data.draw(st.integers(0, len(mutated) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(mutated[: data.draw(st.integers(0, len(mutated)))])
    try:
        rest, raw = parse_infer(message("ModelInferRequest"), cut, max_bytes=BIG)
    except InvalidError:
        return
    whole = message("ModelInferRequest").FromString(cut)
    assert [bytes(view) for view in raw] == list(whole.raw_input_contents)
    assert (rest.model_name, rest.id, len(rest.inputs)) == (whole.model_name, whole.id, len(whole.inputs))


@given(noise=st.binary(max_size=200))
def test_noise_is_refused_or_read_and_never_crashes(noise: bytes) -> None:
    with contextlib.suppress(EverlearnError):
        parse_infer(message("ModelInferRequest"), noise, max_bytes=BIG)


def test_raw_tensors_are_views_on_the_message_itself() -> None:
    request = message("ModelInferRequest")(model_name="m", raw_input_contents=[bytes(602_112)])
    data = request.SerializeToString()
    _, (view,) = parse_infer(message("ModelInferRequest"), data, max_bytes=BIG)
    assert view.obj is data
    assert np.shares_memory(np.frombuffer(view, np.uint8), np.frombuffer(data, np.uint8))


def test_a_message_over_the_limit_is_refused_with_the_limit() -> None:
    data = message("ModelInferRequest")(raw_input_contents=[bytes(100)]).SerializeToString()
    for read in (parse, parse_infer):
        with pytest.raises(PayloadTooLargeError, match="takes at most 99"):
            read(message("ModelInferRequest"), data, max_bytes=99)


def test_millions_of_tiny_fields_are_refused_before_they_are_parsed() -> None:
    for count, said in ((MAX_FIELDS + 1, f"{MAX_FIELDS} top-level fields"), (1_000_000, "65536 fields in one request")):
        with pytest.raises(PayloadTooLargeError, match=f"more than {said}"):
            parse_infer(message("ModelInferRequest"), b"\x3a\0" * count, max_bytes=BIG)


@pytest.mark.parametrize(
    "data", [b"\xff" * 11, b"\x0b", b"\x3a\x05ab", b"\x09\x01", b"\x0d\x01", b"\x80", b"\x0a\x01\xff"]
)
def test_a_malformed_message_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidError, match=r"not a valid inference\.ModelInferRequest"):
        parse_infer(message("ModelInferRequest"), data, max_bytes=BIG)


@pytest.mark.parametrize("padding", range(4))
def test_tensors_are_aligned_wherever_they_lie_in_the_message(padding: int) -> None:
    request = message("ModelInferRequest")(
        model_name="colours", id="x" * padding, raw_input_contents=[np.arange(3, dtype="<f4").tobytes()]
    )
    request.inputs.add(name="features", datatype="FP32", shape=[1, 3])
    rest, raw = parse_infer(message("ModelInferRequest"), request.SerializeToString(), max_bytes=BIG)
    samples = read_samples(rest, raw, ColourServing().snapshot("colours"))
    assert isinstance(samples, Features)
    assert samples.features_Bd.flags.aligned
    np.testing.assert_array_equal(samples.features_Bd, [[0, 1, 2]])
