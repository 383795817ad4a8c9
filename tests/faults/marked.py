"""Marked batches of every kind, right and wrong, as a client library or a hostile client sends them.

images    files and pixels, to a model of sums             tensors   rows of a table
features  computed by a device itself, to the same         texts     through a tokenizer and an encoder
latents   images, to a model that learns by gradients      student   images, to a model with a student in torch
int8      images, to a model that prepares exports in 8 bits
calibrated  images, to a model whose trunk in 8 bits is made from the first of them; for a run of its own
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from tests import tiny
from tests.faults.markers import Marker, Markers, broken_png, jpeg, pixels, png

from everlearn_client import Client, Tensors, Texts
from everlearn_client.errors import EverlearnClientError
from everlearn_client.samples import Batch, Features, SampleInput
from everlearn_protos.v1 import learn_pb2, predict_pb2, tensor_pb2

CLASSES = 4
BATCH = 4
_VALUES = 64
_WRONG_EVERY = 4
"""Every fourth batch is refused."""
_RAW = {"request_serializer": None, "response_deserializer": None}
_STRUCK_AFTER = 12
"""Batches of each kind, all but durable."""
CALIBRATED = "calibrated"
MODEL_OF = {
    "images": "sums",
    "features": "sums",
    "tensors": "tensors",
    "texts": "texts",
    "int8": "eight",
    CALIBRATED: "trunk",
    "latents": "latents",
    "student": "taught",
}
KINDS = tuple(kind for kind in MODEL_OF if kind != CALIBRATED)
QUICK = ("images", "features", "tensors", "int8")
"""Without torch."""


@dataclass
class Sent:
    """How many payloads, by kind and by what became of them."""

    counts: dict[str, Counter[str]] = field(default_factory=dict)

    def add(self, kind: str, what: str, payloads: int) -> None:
        """Counts them."""
        self.counts.setdefault(kind, Counter())[what] += payloads

    @property
    def total(self) -> int:
        """Of all."""
        return sum(sum(each.values()) for each in self.counts.values())


class Payloads:
    """Makes the batches of a run. Labels of what is accepted, and names of clients, come from `allowed`."""

    def __init__(self, folder: Path, markers: Markers, allowed: Markers, kinds: Sequence[str]) -> None:
        self.kinds = tuple(kinds)
        self.sent = Sent()
        self._folder = folder / "given"
        self._folder.mkdir()
        self._markers = markers
        self._labels = [f"kind-{allowed.make('label').text}" for _ in range(CLASSES)]
        self._backbone = tiny.write_backbone(self._folder)
        self._digest = tiny.trunk_of(self._backbone).feature_digest
        self._count = 0
        self._turn = threading.Lock()

    def declarations(self) -> list[str]:
        """Of the models that learn these kinds."""
        made: dict[str, Callable[[], str]] = {
            "sums": lambda: tiny.declaration(self._backbone, name="sums"),
            "eight": lambda: tiny.declaration(self._backbone, name="eight", int8_export={"min_tested": 1}),
            "trunk": lambda: tiny.declaration(self._backbone, name="trunk", int8_trunk={"samples": 32}),
            "latents": lambda: tiny.declaration(self._backbone, name="latents", recipe="latent_replay"),
            "tensors": lambda: json.dumps({"metadata": {"name": "tensors"}, "spec": _TENSORS}),
            "texts": self._texts,
            "taught": self._taught,
        }
        return [made[model]() for model in dict.fromkeys(MODEL_OF[kind] for kind in self.kinds)]

    def is_ours(self, path: Path) -> bool:
        """A file that the test itself has made."""
        return path.is_relative_to(self._folder)

    def learned(self, client: Client, kind: str, payloads: int) -> None:
        """Learned, refused and predicted, through the client library; returns when all is durable."""
        model, first = MODEL_OF[kind], list(self._batches(kind, payloads // 2))
        digest = self._digest if kind == "features" else None
        client.learn(model, first, feature_digest=digest)
        # Before the last batches, whose heartbeat follows.
        if kind != "features":
            client.predict(model, self._samples(kind, "predicted")[0])
            self.sent.add(kind, "predicted", BATCH)
        client.learn(model, list(self._batches(kind, payloads - payloads // 2)), feature_digest=digest)

    def unmarked(self, client: Client, kind: str) -> None:
        """Some batches more, in which nothing is looked for."""
        looked_for, self._markers = self._markers, Markers(len(self._markers))
        try:
            digest = self._digest if kind == "features" else None
            client.learn(MODEL_OF[kind], list(self._batches(kind, 8 * BATCH)), feature_digest=digest)
        finally:
            self._markers = looked_for

    def interrupted(self, connect: Callable[[str], Client], strike: Callable[[], None]) -> None:
        """Learns all kinds at once, until the server is struck down in the middle of it."""
        given, struck = Counter[str](), threading.Event()

        def batches(kind: str) -> Iterator[Batch]:
            while not struck.is_set():
                yield from self._batches(kind, 4 * BATCH, what="interrupted")
                given[kind] += 4

        def learn(kind: str) -> None:
            digest = self._digest if kind == "features" else None
            with connect(kind) as client, contextlib.suppress(EverlearnClientError):
                client.learn(MODEL_OF[kind], batches(kind), retry_for_s=0.5, feature_digest=digest)
            assert struck.is_set(), f"{kind} ended before the server did"

        with ThreadPoolExecutor(len(self.kinds)) as pool:
            learning = [pool.submit(learn, kind) for kind in self.kinds]
            until_s = time.monotonic() + 240
            try:
                while min(given[kind] for kind in self.kinds) < _STRUCK_AFTER:
                    assert time.monotonic() < until_s, f"not all kinds are learned: {given}"
                    time.sleep(0.01)
            finally:
                struck.set()
                strike()
            for each in learning:
                each.result()

    def malformed(self, address: str, payloads: int) -> None:
        """Of each kind so many messages that are none, below the client library, each on its own call; then the
        connection is closed."""
        with grpc.insecure_channel(address) as channel:
            predict = channel.unary_unary("/everlearn.v1.PredictService/Predict", **_RAW)
            learn = channel.stream_stream("/everlearn.v1.LearnService/Learn", **_RAW)
            for number, kind in ((number, kind) for number in range(payloads) for kind in self.kinds):
                self.sent.add(kind, "malformed", 1)
                data = _malformed(kind, self._markers.make(f"malformed {kind}"), number)
                with contextlib.suppress(grpc.RpcError):
                    if number % 2:
                        predict(data, timeout=120)
                    else:
                        opening = learn_pb2.Open(model=f"models/{MODEL_OF[kind]}", client=f"hostile-{number % 8}")
                        first = learn_pb2.LearnRequest(open=opening).SerializeToString()
                        list(learn(iter([first, data]), timeout=120))

    def _batches(self, kind: str, payloads: int, *, what: str = "valid") -> Iterator[Batch]:
        for number in range(-(-payloads // BATCH)):
            with self._turn:
                batch = self._batch(kind, number, what)
            yield batch

    def _batch(self, kind: str, number: int, what: str) -> Batch:
        is_rejected = number % _WRONG_EVERY == _WRONG_EVERY - 1
        self.sent.add(kind, "rejected" if is_rejected else what, BATCH)
        samples, labels = self._samples(kind, "rejected" if is_rejected else what)
        if is_rejected and number % (2 * _WRONG_EVERY) == _WRONG_EVERY - 1:
            labels[-1] = self._markers.make(f"rejected label, {kind}").text * 12  # longer than a label may be
        elif is_rejected:
            samples = self._broken(samples)
        return Batch(samples, labels)

    def _samples(self, kind: str, what: str) -> tuple[SampleInput, list[str]]:
        self._count += 1
        classes = [(self._count + row) % CLASSES for row in range(BATCH)]
        labels = [self._labels[each] for each in classes]
        markers = [self._markers.make(f"{what} {kind}") for _ in classes]
        if kind == "texts":
            return Texts([f"rain and snow {marker.text} wind" for marker in markers]), labels
        if kind in ("tensors", "features"):
            return self._floats(markers, classes, features=kind == "features"), labels
        images = [tiny.images(1, each, seed=self._count)[0] for each in classes]
        if self._count % 3 == 0:
            return np.stack([pixels(*pair) for pair in zip(markers, images, strict=True)]), labels
        make = png if self._count % 3 == 1 else jpeg
        return [self._file(make(*pair), pair[0]) for pair in zip(markers, images, strict=True)], labels

    def _file(self, data: bytes, marker: Marker) -> Path:
        """With the marker in its name too."""
        path = self._folder / f"{marker.text}.image"
        path.write_bytes(data)
        return path

    def _floats(self, markers: list[Marker], classes: list[int], *, features: bool) -> SampleInput:
        random = np.random.default_rng(self._count)
        if features:
            rows = np.concatenate([tiny.features(1, kind, 16, seed=self._count) for kind in classes])
        else:
            rows = random.normal(0, 0.3, (len(classes), _VALUES)).astype(np.float32)
        for row, marker in zip(rows, markers, strict=True):
            row[3:9] = row[-6:] = marker.values
        return Features(rows) if features else Tensors(rows)

    def _broken(self, samples: SampleInput) -> SampleInput:
        marker = self._markers.make("rejected")
        if isinstance(samples, Texts):
            return Texts([*samples.texts[:-1], marker.text * 400])  # beyond 8 KiB
        if isinstance(samples, Tensors):
            rows = samples.values_N.copy()
            rows[-1, 20] = np.inf
            return Tensors(rows)
        if isinstance(samples, Features):
            rows = samples.features_Nd.copy()
            rows[-1, 10] = np.nan
            return Features(rows)
        files = [broken_png(marker, tiny.images(1, 0, seed=self._count)[0])]
        return [png(self._markers.make("rejected"), tiny.images(1, 1)[0]) for _ in range(BATCH - 1)] + files

    def _texts(self) -> str:
        # Here: it imports torch and transformers, which a run without texts need not.
        from tests.encoders import TINY, tiny_files

        from everlearn.spec.lock import sides_digest

        files = tiny_files(self._folder / "encoder")
        sides = {name: digest for name, digest in files.sha256.items() if name != "model.safetensors"}
        backbone: dict[str, Any] = {
            "source": f"folder:{self._folder}/encoder/model.safetensors",
            "loader": TINY.loader,
            "sha256": files.sha256["model.safetensors"],
            "sides_sha256": sides_digest(sides),
        }
        spec = {"backbone": backbone, "input": {"modality": "text", "max_tokens": 16}}
        return json.dumps({"metadata": {"name": "texts"}, "spec": spec})

    def _taught(self) -> str:
        import safetensors.torch
        import timm

        small = self._folder / "small.safetensors"
        safetensors.torch.save_file(timm.create_model("test_resnet").state_dict(), small)
        backbone = {
            "source": f"folder:{small}",
            "sha256": hashlib.sha256(small.read_bytes()).hexdigest(),
            "architecture": "test_resnet",
        }
        return tiny.declaration(self._backbone, name="taught", distill_to={"backbone": backbone, "steps": 1})


_TENSORS = {
    "backbone": {"source": "identity"},
    "input": {"modality": "tensor", "shape": [_VALUES], "range": [-2, 2]},
}


def _malformed(kind: str, marker: Marker, number: int) -> bytes:
    """No message, a message of another kind, one cut off, and one whose samples are none."""
    samples = _misshapen(kind, marker)
    batch = learn_pb2.Batch(sequence=1, labels=[marker.text * 2], samples=samples, step=marker.text.upper())
    whole = learn_pb2.LearnRequest(batch=batch).SerializeToString()
    predict = predict_pb2.PredictRequest(name=f"models/{marker.text}/../x", samples=samples).SerializeToString()
    return (marker.raw * 4, predict, whole[:-5], whole, marker.letters * 100)[number % 5]


def _misshapen(kind: str, marker: Marker) -> tensor_pb2.Samples:
    if kind == "texts":
        return tensor_pb2.Samples(texts=tensor_pb2.Texts(texts=[marker.text, "\0" + marker.text, ""]))
    data = marker.raw * 3 + marker.floats
    if kind not in ("tensors", "features"):
        files = [b"\x89PNG\r\n\x1a\n" + data, b"\xff\xd8\xff\xe0" + data]
        return tensor_pb2.Samples(encoded_images=tensor_pb2.EncodedImages(images=files))
    tensor = tensor_pb2.Tensor(shape=[3, 3], data_type=1, data=data)
    return tensor_pb2.Samples(tensors=tensor) if kind == "tensors" else tensor_pb2.Samples(features=tensor)
