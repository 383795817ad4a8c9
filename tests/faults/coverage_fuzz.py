"""libFuzzer (atheris) looks for bytes that reach new code of ours, and for some that end in anything but a refusal.

python -m tests.faults.coverage_fuzz TARGET CORPUS -max_total_time=60

wire       what a server does with a message: pre-scan, protobuf, arrays
names      resource names and page tokens
manifest   a declared model, or a lock file
header     the header of a safetensors file
delta      the plan of a delta, and the tensors of an ONNX file
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

Target = Callable[[bytes], None]
BASE_BYTES = 4096
"""Of the file that a delta's plan is for."""


def wire() -> tuple[Target, list[bytes]]:
    """Takes one byte that chooses the message, and the message."""
    from tests import tiny

    from everlearn.errors import EverlearnError
    from everlearn_protos.arrays import to_tensor
    from everlearn_protos.v1 import learn_pb2, models_pb2, predict_pb2, tensor_pb2
    from everlearn_server.rpc.samples import learned_of, truth_of
    from everlearn_server.rpc.wire import parse

    kinds: list[Any] = [learn_pb2.LearnRequest, predict_pb2.PredictRequest, models_pb2.ApplyModelRequest]

    def target(data: bytes) -> None:
        try:
            message: Any = parse(kinds[data[0] % len(kinds)], data[1:])
            if data[0] % len(kinds) == 0:
                truth_of(message.batch)
                learned_of(message.batch.samples, field="batch.samples")
            elif data[0] % len(kinds) == 1:
                learned_of(message.samples, field="samples")
        except EverlearnError as error:
            if not error.field:
                raise AssertionError("a refusal that names no field") from error

    features = tensor_pb2.Samples(features=to_tensor(tiny.features(2, 1, 4, seed=1)))
    batch = learn_pb2.Batch(sequence=1, labels=["a", "b"], samples=features)
    seeds = [
        learn_pb2.LearnRequest(batch=batch),
        predict_pb2.PredictRequest(samples=features),
        models_pb2.ApplyModelRequest(),
    ]
    return target, [bytes([place]) + seed.SerializeToString() for place, seed in enumerate(seeds)]


def names() -> tuple[Target, list[bytes]]:
    """Takes text."""
    from everlearn.errors import EverlearnError
    from everlearn_server.rpc.names import export_of, model_of, page, version_of

    def target(data: bytes) -> None:
        name = data.decode(errors="replace")
        for read in (model_of, version_of, export_of, partial(page, [1, 2, 3], 2)):
            with contextlib.suppress(EverlearnError):
                read(name)

    return target, [b"models/digits", b"models/digits/versions/stable", b"models/digits/exports/12", b"2"]


def manifest() -> tuple[Target, list[bytes]]:
    """Takes YAML."""
    from everlearn.errors import EverlearnError
    from everlearn.spec.load import dump, parse

    def target(data: bytes) -> None:
        try:
            model = parse(data.decode(errors="replace"))
        except EverlearnError:
            return
        assert parse(dump(model)) == model, "what was taken is written as something else"

    declared = b"metadata: {name: m}\nspec:\n  backbone: {source: identity}\n  input: {modality: tensor, shape: [4]}\n"
    return target, [declared, declared + b"  recipe: {preset: analytic}\n", b"{'a': &b [1], c: *b}"]


def header() -> tuple[Target, list[bytes]]:
    """Takes a file."""
    from everlearn.errors import EverlearnError
    from everlearn.hubs._safetensors import check_safetensors

    path = Path(tempfile.mkdtemp(prefix="everlearn-fuzz-")) / "model.safetensors"

    def target(data: bytes) -> None:
        path.write_bytes(data)
        with contextlib.suppress(EverlearnError):
            check_safetensors(path)

    told = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"__metadata__":{"format":"pt"}}'
    return target, [len(told).to_bytes(8, "little") + told + b"\0\0\0\0"]


def delta() -> tuple[Target, list[bytes]]:
    """Takes one byte that chooses, and a plan or an ONNX file."""
    from everlearn_protos.delta._errors import DeltaError
    from everlearn_protos.delta._onnx_ranges import tensor_ranges
    from everlearn_protos.delta._plan import Plan
    from everlearn_protos.delta._wire import Envelope
    from everlearn_protos.delta.encoding import encode

    def target(data: bytes) -> None:
        if data[0] % 2:
            with contextlib.suppress(DeltaError):
                Plan.unpack(data[1:], base_size=BASE_BYTES, target_size=BASE_BYTES)
        else:
            tensor_ranges(data[1:])

    onnx = b"\x3a\x10\x2a\x0e\x08\x01\x10\x01\x42\x02\x77\x30\x4a\x04\x00\x00\x00\x00"
    changed = encode(bytes(BASE_BYTES), bytes(BASE_BYTES // 2) + bytes([7]) * (BASE_BYTES // 2))
    return target, [b"\1" + Envelope.read(changed).plan, b"\0" + onnx]


TARGETS: dict[str, Callable[[], tuple[Target, list[bytes]]]] = {
    made.__name__: made for made in (wire, names, manifest, header, delta)
}


def main() -> None:
    """Never returns: libFuzzer ends the process, with 0 where all was refused or taken."""
    import atheris

    name, corpus, *options = sys.argv[1:]
    # What is imported from here on tells the fuzzer where it has been.
    with atheris.instrument_imports(include=["everlearn", "everlearn_server", "everlearn_protos"]):
        target, seeds = TARGETS[name]()
    for place, seed in enumerate(seeds):
        (Path(corpus) / f"seed-{place}").write_bytes(seed)

    def one(data: bytes) -> None:
        if data:
            target(data)

    atheris.Setup([name, corpus, f"-artifact_prefix={corpus}/", *options], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
