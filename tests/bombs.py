"""Messages that are small to send and large to read: they are why the wire is walked before it is parsed."""

from __future__ import annotations

from everlearn_protos.oip import message
from everlearn_protos.v1 import learn_pb2, tensor_pb2

MIB = 2**20


def field(number: int, payload: bytes) -> bytes:
    """A length-delimited field."""
    return varint(number << 3 | 2) + varint(len(payload)) + payload


def varint(value: int) -> bytes:
    """As on the wire."""
    data = bytearray()
    while value > 127:
        data.append(value & 127 | 128)
        value >>= 7
    return bytes([*data, value])


def _nested(number: int, depth: int) -> bytes:
    data = b""
    for _ in range(depth):
        data = field(number, data)
    return data


def learn_bombs(size: int = 4 * MIB) -> dict[str, bytes]:
    """LearnRequests of up to so many bytes; from half a MiB on each is beyond a limit."""
    few, some = size // 2 - 20, size * 5 // 16  # of two bytes each, and of three

    def batch(payload: bytes) -> bytes:
        return field(2, payload)

    def features(payload: bytes) -> bytes:
        return batch(field(3, field(4, payload)))

    return {
        "empty label sets": batch(b"\xa2\x01\x00" * some),
        "empty labels": batch(b"\x12\x00" * few),
        "labels of a letter": batch(b"\x12\x01a" * some),
        "labels in sets": batch(field(20, b"\x0a\x00" * few)),
        "samples merged again and again": batch(b"\x1a\x00" * few),
        "empty images": batch(field(3, field(1, b"\x0a\x00" * few))),
        "a shape of millions of axes": features(field(2, b"\x01" * (size - 30))),
        "a shape of unpacked axes": features(b"\x10\x01" * few),
        "dtype given again and again": features(b"\x08\x03" * few),
        "unknown numbers": b"\x98\x06\x01" * some,
        "unknown messages": b"\x9a\x06\x00" * some,
        "unknown fields inside": features(b"\x98\x06\x01" * some),
        "groups that never end": b"\x1b" * size,
        "groups in groups": b"\x1b" * 1000 + b"\x1c" * 1000,
        "a tag that never ends": b"\xff" * size,
        "numbers that never end": batch(b"\x08" + b"\x80" * (size - 20)),
        "lengths beyond all": batch(b"\x12\xff\xff\xff\xff\xff\xff\xff\xff\x7f"),
        "unknown messages, deep": _nested(100, 1000) * (size // 10_000),
    }


def infer_bombs() -> dict[str, bytes]:
    """ModelInferRequests of up to 16 MiB."""

    def contents(payload: bytes) -> bytes:
        return field(5, field(5, payload))

    return {
        "empty inputs": b"\x2a\x00" * (8 * MIB),
        "empty raw contents": b"\x3a\x00" * (8 * MIB),
        "empty parameters": b"\x22\x00" * (8 * MIB),
        "packed booleans": contents(field(1, b"\x01" * (16 * MIB - 30))),
        "packed integers": contents(field(3, b"\x01" * (16 * MIB - 30))),
        "packed doubles": contents(field(7, bytes(16 * MIB - 32))),
        "unpacked floats": contents(b"\x35\0\0\0\0" * (3 * MIB)),
        "empty strings": contents(field(8, b"")[:1] + b"\x00" + b"\x42\x00" * (8 * MIB - 40)),
        "axes": field(5, field(3, b"\x01" * (16 * MIB - 30))),
    }


def honest_learn_requests() -> dict[str, bytes]:
    """The largest that the contract takes."""
    images, sets, rows = learn_pb2.LearnRequest(), learn_pb2.LearnRequest(), learn_pb2.LearnRequest()
    images.batch.sequence = sets.batch.sequence = rows.batch.sequence = 1
    images.batch.labels.extend(f"class {index}" for index in range(256))
    images.batch.samples.encoded_images.images.extend([bytes(16_000)] * 256)
    for _ in range(1024):
        sets.batch.label_sets.add(labels=[f"label {index}" for index in range(60)])
    rows.batch.labels.extend(f"class {index}" for index in range(1024))
    tensor = tensor_pb2.Tensor(data_type=tensor_pb2.Tensor.FLOAT32, shape=[1024, 1000], data=bytes(4_096_000))
    rows.batch.samples.features.CopyFrom(tensor)
    named = {"256 images": images, "1,024 sets of 60 labels": sets, "1,024 rows": rows}
    return {name: request.SerializeToString() for name, request in named.items()}


def honest_infer_request() -> bytes:
    """A million floats, typed."""
    request = message("ModelInferRequest")(model_name="m")
    tensor = request.inputs.add(name="pixels", datatype="FP32", shape=[6, 3, 224, 224])
    tensor.contents.fp32_contents.extend([0.5] * (6 * 3 * 224 * 224))
    return bytes(request.SerializeToString())
