"""The walk over a message before it is parsed: what protobuf would choke on is refused, and nothing else."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from google.protobuf.message import DecodeError
from google.protobuf.struct_pb2 import Struct
from hypothesis import given, settings
from hypothesis import strategies as st
from tests import bombs

from everlearn.errors import InvalidError, PayloadTooLargeError
from everlearn_protos.oip import message
from everlearn_protos.v1 import learn_pb2, models_pb2, predict_pb2, tensor_pb2
from everlearn_server.rpc import prescan
from everlearn_server.rpc.oip_wire import parse_infer
from everlearn_server.rpc.wire import parse

LEARN = learn_pb2.LearnRequest
INFER = message("ModelInferRequest")
BIG = 2**24

learn_requests = st.builds(
    lambda sequence, labels, sets, shape, data, images: LEARN(
        batch=learn_pb2.Batch(
            sequence=sequence,
            labels=labels,
            label_sets=[learn_pb2.LabelSet(labels=each) for each in sets],
            values=tensor_pb2.Tensor(data_type=3, shape=shape, data=data),
            samples=tensor_pb2.Samples(encoded_images=tensor_pb2.EncodedImages(images=images)),
        )
    ),
    st.integers(0, 2**64 - 1),
    st.lists(st.text(max_size=200), max_size=5),
    st.lists(st.lists(st.text(max_size=9), max_size=3), max_size=4),
    st.lists(st.integers(-(2**63), 2**63 - 1), max_size=10),
    st.binary(max_size=300),
    st.lists(st.binary(max_size=300), max_size=4),
)


@given(learn_requests)
def test_every_message_that_protobuf_makes_passes(request: Any) -> None:
    assert parse(LEARN, request.SerializeToString()) == request


@pytest.mark.parametrize("name", bombs.honest_learn_requests())
def test_the_largest_batches_of_the_contract_pass(name: str) -> None:
    assert parse(LEARN, bombs.honest_learn_requests()[name]).batch.sequence == 1


def test_a_million_typed_floats_pass() -> None:
    request, _ = parse_infer(INFER, bombs.honest_infer_request(), max_bytes=BIG)
    assert len(request.inputs[0].contents.fp32_contents) == 903_168


@settings(max_examples=600, deadline=None)
@given(request=learn_requests, data=st.data())
def test_a_mutated_message_is_refused_where_protobuf_refuses_it_and_with_a_path(request: Any, data: Any) -> None:
    mutated = bytearray(request.SerializeToString() or b"\0")
    for _ in range(data.draw(st.integers(1, 4))):
        mutated[data.draw(st.integers(0, len(mutated) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(mutated[: data.draw(st.integers(0, len(mutated)))])
    try:
        expected = LEARN.FromString(cut)
    except DecodeError:
        with pytest.raises(InvalidError) as refusal:
            parse(LEARN, cut)
        assert refusal.value.field
        return
    try:
        found = parse(LEARN, cut)
    except InvalidError as stricter:
        said = stricter.message
    else:
        said = "a group" if found.SerializeToString() == expected.SerializeToString() else "another message"
    assert "a group" in said or "bytes of numbers" in said  # what protobuf takes, and proto3 never writes


@given(st.binary(max_size=200), st.sampled_from([LEARN, INFER, predict_pb2.PredictRequest, Struct]))
def test_noise_is_read_or_refused_with_a_path(noise: bytes, kind: Any) -> None:
    try:
        assert parse(kind, noise) == kind.FromString(noise)
    except InvalidError as refusal:
        assert refusal.field  # noqa: PT017  # both ends are right


@pytest.mark.parametrize(
    ("data", "path"),
    [
        (b"\xff\xff", "everlearn.v1.LearnRequest"),
        (b"\x12\x09", "batch"),
        (bombs.field(2, bombs.field(2, b"a") + bombs.field(2, b"\xff")), "batch.labels[1]"),
        (bombs.field(2, bombs.field(2, b"a") + b"\x12\x09"), "batch.labels[1]"),
        (bombs.field(2, bombs.field(20, b"") + bombs.field(20, b"\x0a\x05ab")), "batch.label_sets[1].labels[0]"),
        (bombs.field(2, bombs.field(3, bombs.field(4, bombs.field(2, bytes(70_000))))), "batch.samples.features.shape"),
        (bombs.field(2, bombs.field(3, bombs.field(6, bombs.field(1, b"\xc3")))), "batch.samples.texts.texts[0]"),
        (bombs.field(2, bombs.field(3, b"\x22\x05\x08")), "batch.samples.features"),
        (bombs.field(2, b"\x08" + b"\x80" * 11), "batch.sequence"),
        (bombs.field(1, b"\x0b\x0c"), "open.model"),
        (b"\xe3\x06\xe4\x06", "everlearn.v1.LearnRequest"),
        (b"\x00\x00", "everlearn.v1.LearnRequest"),
        (b"\x0f", "open"),
    ],
)  # fmt: skip
def test_the_field_that_is_wrong_is_named(data: bytes, path: str) -> None:
    with pytest.raises(InvalidError, match=r"not a valid everlearn\.v1\.LearnRequest|has 70000 bytes") as refusal:
        parse(LEARN, data)
    assert refusal.value.field == path


def infer(data: bytes) -> Any:
    return parse_infer(INFER, data, max_bytes=BIG)


CASES: list[tuple[str, Callable[[bytes], Any], bytes]] = [
    *((name, lambda data: parse(LEARN, data), data) for name, data in bombs.learn_bombs().items()),
    *((name, infer, data) for name, data in bombs.infer_bombs().items()),
]


LOOP_S = 0.015
"""What the loop below takes on two cores of an AMD EPYC."""


def slowness() -> float:
    """Of this machine, at what such a walk does; 1 where it is no slower than the two cores of which 50 ms are said."""

    def loop_s() -> float:
        begun_s, sums = time.thread_time(), 0
        for number in range(500_000):
            sums += number & 7
        return time.thread_time() - begun_s

    return max(1.0, min(loop_s() for _ in range(3)) / LOOP_S)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0])
def test_a_bomb_is_refused_within_50_ms_and_64_mb(case: tuple[str, Callable[[bytes], Any], bytes]) -> None:
    _, read, data = case
    process = psutil.Process()
    before, took_s = process.memory_info().rss, 1.0
    for _ in range(3):
        begun_s = time.thread_time()
        with pytest.raises(InvalidError) as refusal:
            read(data)
        took_s = min(took_s, time.thread_time() - begun_s)
    assert refusal.value.field
    assert process.memory_info().rss - before < 64 * 2**20
    assert took_s < 0.05 * slowness()


@pytest.mark.parametrize("name", ["empty label sets", "a shape of millions of axes"])
def test_without_the_walk_the_same_bomb_goes_off(name: str) -> None:
    # In a process of its own: this one may have as much memory to spare, from what other tests had.
    code = f"""
import psutil
from everlearn_protos.v1.learn_pb2 import LearnRequest
from tests import bombs

data, process = bombs.learn_bombs()[{name!r}], psutil.Process()
before = process.memory_info().rss
request = LearnRequest.FromString(data)
held = list(request.batch.samples.features.shape)
print(process.memory_info().rss - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) > 30 * 2**20


def test_messages_inside_each_other_are_counted() -> None:
    deep = Struct()
    inner = deep
    for _ in range(12):
        inner = inner.fields["a"].struct_value
    with pytest.raises(PayloadTooLargeError, match="messages more than 16 deep") as refusal:
        prescan.check(deep.SerializeToString(), Struct)
    assert refusal.value.field.startswith("fields[0].value.struct_value.fields[0].value")


def test_limits_are_exact() -> None:
    for count, limit in ((prescan.MAX_MESSAGES, b"\xa2\x01\x00"), (prescan.MAX_FIELDS - 1, b"\x12\x00")):
        parse(LEARN, bombs.field(2, limit * (count - 1)))
        with pytest.raises(PayloadTooLargeError, match="more than"):
            parse(LEARN, bombs.field(2, limit * (count + 1)))
    parse(LEARN, b"\x98\x06\x01" * prescan.MAX_UNKNOWN)
    with pytest.raises(PayloadTooLargeError, match="not known here"):
        parse(LEARN, b"\x98\x06\x01" * (prescan.MAX_UNKNOWN + 1))


def test_the_walk_does_not_read_payloads() -> None:
    """Each field costs the same, whatever it holds: 4 MiB of images as 4 KiB of them."""

    def took_s(data: bytes) -> float:
        best = 1.0
        for _ in range(50):
            begun_s = time.thread_time()
            prescan.check(data, LEARN)
            best = min(best, time.thread_time() - begun_s)
        return best

    def images(size: int) -> bytes:
        data: bytes = bombs.field(2, bombs.field(3, bombs.field(1, bombs.field(1, bytes(size)) * 250)))
        return data

    assert took_s(images(16_000)) < 10 * took_s(images(16)) + 1e-4  # reading them takes a thousand times as long
    assert took_s(images(16_000)) < 1e-3


def test_a_name_is_bounded_by_the_message_alone() -> None:
    request = models_pb2.GetModelRequest(name="a" * 4_000_000)
    assert parse(models_pb2.GetModelRequest, request.SerializeToString()) == request
