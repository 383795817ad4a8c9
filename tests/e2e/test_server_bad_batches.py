"""Wrong batches and wrong streams: each is refused by name, and nothing that was right is lost."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests import tiny
from tests.e2e.server_calls import Conversation, Stubs, batch, encoded, refusal_of, refused, samples_of
from tests.real_server import RealServer

from everlearn_client import Client, InvalidArgument, NotFound
from everlearn_protos.arrays import to_tensor
from everlearn_protos.v1 import learn_pb2, tensor_pb2

DIM = 16
IMAGES = "batch.samples.encoded_images.images"
GOOD = tiny.images(2, 0)


@pytest.fixture(scope="module", autouse=True)
def model(server: RealServer, backbone: Path) -> str:
    """The digest of the model's features."""
    return server.declare(tiny.declaration(backbone)).status.input.feature_digest


@pytest.fixture
def stream(stubs: Stubs) -> Iterator[Conversation]:
    """Open; each test takes it up where the one before left it."""
    with stubs.learn("tiny", "poisoner") as conversation:
        yield conversation


def tensor(data_type: int, shape: list[int], data: bytes) -> tensor_pb2.Tensor:
    return tensor_pb2.Tensor(data_type=data_type, shape=shape, data=data)  # type: ignore[arg-type]  # an enum's number


def images(data_type: int, shape: list[int], data: bytes) -> tensor_pb2.Samples:
    return tensor_pb2.Samples(images=tensor(data_type, shape, data))


def png_header(width: int, height: int) -> bytes:
    """A PNG of a hundred bytes that claims a size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(999))) + chunk(b"IEND", b"")
    )


def poisoned(array: Any, value: float, row: int) -> Any:
    copied = array.copy()
    copied[row].flat[3] = value
    return copied


PIXELS = np.zeros((2, 3, 16, 16), np.float32)
JPEG = encoded(tiny.images(1, 0, side=64)[0], "JPEG")
U8, F16, F32, I64 = 1, 2, 3, 4
TWO = ["a", "b"]
POISON: dict[str, tuple[Any, list[str], str]] = {
    "labels without samples": (tensor_pb2.Samples(), TWO, "batch.samples"),
    "fewer labels than samples": (GOOD, ["a"], "batch.labels"),
    "more labels than samples": (GOOD, ["a", "b", "c"], "batch.labels"),
    "no labels": (GOOD, [], "batch.labels"),
    "an empty label": (GOOD, ["a", ""], "batch.labels[1]"),
    "a blank label": (GOOD, [" \t", "a"], "batch.labels[0]"),
    "a label with a line's end": (GOOD, ["a", "cat\n"], "batch.labels[1]"),
    "a label with a space before it": (GOOD, ["a", " cat"], "batch.labels[1]"),
    "a label of 257 bytes": (GOOD, ["a", "é" * 128 + "x"], "batch.labels[1]"),
    "too many samples": (np.zeros((1025, 1, 1, 3), np.uint8), ["a"] * 1025, "batch.samples"),
    "no data type": (images(0, [2, 1, 1, 3], bytes(6)), TWO, "batch.samples.images"),
    "an unknown data type": (images(99, [2, 1, 1, 3], bytes(6)), TWO, "batch.samples.images"),
    "float images": (images(F32, [2, 1, 1, 3], bytes(24)), TWO, "batch.samples.images.data_type"),
    "three axes": (images(U8, [2, 4, 3], bytes(24)), TWO, "batch.samples.images.shape"),
    "no axes": (images(U8, [], bytes(1)), TWO, "batch.samples.images.shape"),
    "four channels": (images(U8, [2, 2, 2, 4], bytes(32)), TWO, "batch.samples.images"),
    "no pixels": (images(U8, [2, 0, 2, 3], b""), TWO, "batch.samples.images"),
    "too few bytes": (images(U8, [2, 2, 2, 3], bytes(23)), TWO, "batch.samples.images"),
    "too many bytes": (images(U8, [2, 2, 2, 3], bytes(25)), TWO, "batch.samples.images"),
    "a negative axis": (images(U8, [-2, -2, 2, 3], bytes(24)), TWO, "batch.samples.images"),
    "axes whose product overflows": (images(U8, [2**62, 2**62, 2**62, 3], b""), TWO, "batch.samples.images"),
    "many axes": (images(U8, [1] * 5000, bytes(1)), ["a"], "batch.samples.images"),
    "pixels of another size": (np.zeros((2, 3, 8, 8), np.float32), TWO, "batch.samples.pixels"),
    "pixels of half precision": (
        tensor_pb2.Samples(pixels=tensor(F16, [2, 3, 16, 16], bytes(3072))),
        TWO,
        "batch.samples.pixels.data_type",
    ),
    "pixels that are no number": (poisoned(PIXELS, np.nan, 1), TWO, "batch.samples.pixels[1]"),
    "pixels that are infinite": (poisoned(PIXELS, -np.inf, 0), TWO, "batch.samples.pixels[0]"),
    "finite pixels that overflow in the trunk": (poisoned(PIXELS, 3e38, 1), TWO, "batch.samples.pixels[1]"),
    "pixels never normalised": (PIXELS + 1e6, TWO, "batch.samples.pixels[0]"),
    "features without their digest": (np.zeros((2, DIM), np.float32), TWO, "open.feature_digest"),
    "an empty file": ([encoded(GOOD[0]), b""], TWO, f"{IMAGES}[1]"),
    "text": ([b"this is no image", JPEG], TWO, f"{IMAGES}[0]"),
    "half a JPEG": ([JPEG, JPEG[: len(JPEG) // 2]], TWO, f"{IMAGES}[1]"),
    "a JPEG's first bytes": ([JPEG[:20], JPEG], TWO, f"{IMAGES}[0]"),
    "a PNG with a flipped byte": ([encoded(GOOD[0])[:60] + b"\x00" + encoded(GOOD[0])[61:]], ["a"], f"{IMAGES}[0]"),
    "a PNG that claims 3.6 gigapixels": ([png_header(60_000, 60_000)], ["a"], f"{IMAGES}[0]"),
    "a small PNG of 25 megapixels": ([encoded(np.zeros((5000, 5000), np.uint8))], ["a"], f"{IMAGES}[0]"),
    "a PNG of no size": ([png_header(0, 10)], ["a"], f"{IMAGES}[0]"),
    "a GIF": ([encoded(GOOD[0], "GIF")], ["a"], f"{IMAGES}[0]"),
    "a file above the limit": ([JPEG + bytes(2 * 2**20)], ["a"], f"{IMAGES}[0]"),
}


@pytest.mark.parametrize("name", POISON)
def test_a_poison_batch_is_rejected_by_name_and_the_stream_goes_on(
    stream: Conversation, client: Client, name: str
) -> None:
    before = client.models.get("tiny").status
    samples, labels, field = POISON[name]
    sequence = stream.opened.durable_sequence + 1
    stream.batch(sequence, samples, labels)
    rejected = stream.hear("rejected")
    assert (rejected.sequence, rejected.code, rejected.field) == (sequence, "INVALID_ARGUMENT", field)
    assert rejected.message
    assert len(rejected.message) < 500
    stream.batch(sequence + 1, GOOD, ["kept", "kept"])
    assert stream.hear("received").samples == 2
    last = stream.finish()[-1]
    assert last.durable.sequence == sequence + 1
    after = client.models.get("tiny").status
    assert after.sample_count == before.sample_count + 2
    assert list(after.labels) == ["kept"]


def test_features_that_are_wrong_are_rejected(stubs: Stubs, model: str) -> None:
    good = tiny.features(2, 0, DIM)
    wrong = {
        "batch.samples.features": np.zeros((2, DIM + 1), np.float32),
        "batch.samples.features.shape": tensor_pb2.Samples(features=to_tensor(np.zeros((2, DIM, 1), np.float32))),
        "batch.samples.features.data_type": tensor_pb2.Samples(features=to_tensor(np.zeros((2, DIM), np.int64))),
        "batch.samples.features[1]": poisoned(good, np.nan, 1),
        "batch.samples.features[0]": poisoned(good, np.inf, 0),
    }
    beyond = [poisoned(good, value, 1) for value in (1e30, -1e30, 1e4)]
    with stubs.learn("tiny", "featurer", feature_digest=model) as stream:
        for sequence, (field, samples) in enumerate(wrong.items(), start=1):
            stream.batch(sequence, samples_of(samples), TWO)
            assert stream.hear("rejected").field == field
        for sequence, samples in enumerate(beyond, start=len(wrong) + 1):
            stream.batch(sequence, samples, TWO)
            rejected = stream.hear("rejected")
            assert (rejected.field, "beyond" in rejected.message) == ("batch.samples.features[1]", True)
        last = len(wrong) + len(beyond) + 1
        stream.batch(last, good, ["kept", "kept"])
        assert stream.hear("received").samples == 2
        assert stream.finish()[-1].durable.sequence == last


def opened(stubs: Stubs, **fields: Any) -> Callable[[], object]:
    return lambda: stubs.learn("tiny", **{"client": "opener", **fields})


def test_a_stream_that_cannot_be_opened_says_which_part_is_wrong(stubs: Stubs, server: RealServer) -> None:
    refused(lambda: stubs.learn("nobody", "a"), "NOT_FOUND", field="open.model")
    refused(lambda: stubs.learn("No/body", "a"), "INVALID_ARGUMENT", field="open.model")
    for client in ("", "A", "a b", "x" * 64, "../a"):
        refused(opened(stubs, client=client), "INVALID_ARGUMENT", field="open.client")
    refused(opened(stubs, feature_digest="0" * 64), "INVALID_ARGUMENT", field="open.feature_digest")
    refused(opened(stubs, epoch=77), "ABORTED", field="open.epoch", reason="FENCED")
    refused(opened(stubs, timeline="f" * 32), "ABORTED", field="open.timeline", reason="TIMELINE_CHANGED")


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (batch(1, GOOD, TWO), "open"),
        (learn_pb2.LearnRequest(), "open"),
        (b"\xff\xff\xff", "everlearn.v1.LearnRequest"),
        (None, "open"),
    ],
    ids=["a batch", "nothing", "bytes", "the end"],
)
def test_a_stream_begins_with_open(stubs: Stubs, message: Any, field: str) -> None:
    with stubs.learn("tiny", "starter", open_=False) as stream:
        if message is not None:
            stream.send(message)
        refused(stream.finish, "INVALID_ARGUMENT", field=field)


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (learn_pb2.LearnRequest(open=learn_pb2.Open(model="models/tiny", client="again")), "batch"),
        (learn_pb2.LearnRequest(), "batch"),
        (b"\x12\xff", "batch"),
        (b"\x12\x06\x12\x02\xc3\x28\x08\x01", "batch.labels[0]"),
        (batch(0, GOOD, TWO), "batch.sequence"),
    ],
    ids=["a second open", "nothing", "truncated bytes", "a label that is not UTF-8", "sequence 0"],
)
def test_a_message_that_ends_the_stream_loses_nothing_before_it(
    stubs: Stubs, client: Client, message: Any, field: str
) -> None:
    with stubs.learn("tiny", "breaker") as stream:
        sequence = stream.opened.durable_sequence + 1
        stream.batch(sequence, GOOD, ["kept", "kept"])
        stream.hear("received")
        stream.send(message)
        refused(lambda: list(stream), "INVALID_ARGUMENT", field=field)
    with stubs.learn("tiny", "breaker") as again:
        again.batch(sequence, GOOD, ["kept", "kept"])
        assert again.hear("received").duplicate
        assert again.finish()[-1].durable.sequence == sequence
    assert list(client.models.get("tiny").status.labels) == ["kept"]


def test_a_gap_ends_the_stream_and_says_what_is_expected(stubs: Stubs) -> None:
    with stubs.learn("tiny", "gapper") as stream:
        stream.batch(1, GOOD, ["kept"] * 2)
        stream.hear("received")
        stream.batch(3, GOOD, ["kept"] * 2)
        found = refused(lambda: list(stream), "FAILED_PRECONDITION", field="batch.sequence", reason="SEQUENCE_GAP")
        assert found.metadata["expected"] == "2"
    with stubs.learn("tiny", "gapper") as again:
        again.batch(2**63, GOOD, ["kept"] * 2)
        assert refusal_of(lambda: list(again)).metadata["expected"] == "2"
    with stubs.learn("tiny", "gapper") as last:
        last.batch(2, GOOD, ["kept"] * 2)
        assert not last.hear("received").duplicate


def test_a_newer_connection_fences_the_older_one(stubs: Stubs) -> None:
    with stubs.learn("tiny", "twin") as older:
        older.batch(1, GOOD, ["kept"] * 2)
        older.hear("received")
        with stubs.learn("tiny", "twin") as newer:
            assert newer.opened.epoch == older.opened.epoch + 1
            older.batch(2, GOOD, ["kept"] * 2)
            refused(lambda: list(older), "ABORTED", reason="FENCED")
            newer.batch(2, GOOD, ["kept"] * 2)
            assert not newer.hear("received").duplicate
            refused(opened(stubs, client="twin", epoch=older.opened.epoch), "ABORTED", reason="FENCED")


def test_batches_beyond_the_credits_end_the_stream_with_a_time_to_come_back(stubs: Stubs, client: Client) -> None:
    slow = [encoded(np.full((1500, 1500, 3), 7, np.uint8))] * 2
    with stubs.learn("tiny", "greedy") as stream:
        for sequence in range(1, stream.opened.credits + 30):
            stream.batch(sequence, slow, ["kept"] * 2)
        found = refused(lambda: list(stream), "RESOURCE_EXHAUSTED", reason="QUEUE_FULL")
        assert found.retry_after_s is not None
        assert found.retry_after_s > 0
    assert client.predict("tiny", GOOD).top


def test_a_backbone_that_is_none_is_refused_and_leaves_no_model(client: Client, tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    with pytest.raises(InvalidArgument):
        client.models.apply(tiny.declaration(broken, name="broken"))
    with pytest.raises(NotFound):
        client.models.get("broken")


def test_an_oversized_message_ends_its_call_alone(stubs: Stubs, client: Client) -> None:
    with stubs.learn("tiny", "heavy") as stream:
        stream.batch(1, GOOD, ["kept"] * 2)
        stream.hear("received")
        stream.batch(2, np.zeros((1, 1320, 1320, 3), np.uint8), ["kept"])
        refused(
            lambda: list(stream), "INVALID_ARGUMENT", field="everlearn.v1.LearnRequest", reason="TOO_LARGE", says="5227"
        )
    assert client.learn("tiny", [(GOOD, ["kept"] * 2)], client_id="heavy").durable_samples == 2
