"""What a fuzzing client sends: for every method that a server reflects, messages right, wrong and in between."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass
from tests import bombs, tiny
from tests.e2e.server_calls import encoded
from tests.faults.mutations import altered, invalid_on_the_wire, mutated

from everlearn_protos.arrays import to_tensor
from everlearn_protos.oip import message
from everlearn_protos.v1 import learn_pb2, predict_pb2, tensor_pb2

DIM = 16
MODELS = ("fuzzed", "sets", "values")
NOBODY = "nobody"
"""Whatever destroys or builds is asked of a model that is not there."""
_TEXTS = {
    "parent": "models/fuzzed",
    "version": "models/fuzzed/versions/1",
    "model_name": NOBODY,
    "file_name": "model.onnx",
    "timeline": "",
    "etag": "",
    "page_token": "",
    "plan_id": "",
    "list_services": "*",
    "file_containing_symbol": "everlearn.v1.LearnService",
}
_NOT_THE_MODEL = ("DeleteModel", "DeleteOperation", "WaitOperation", "UpgradeBackbone", "CancelOperation")
F32 = tensor_pb2.Tensor.FLOAT32


@dataclass(frozen=True)
class Case:
    """One message. `is_wrong`: no server may take it."""

    data: bytes
    is_wrong: bool
    what: str


def declarations(backbone: Path) -> list[str]:
    """One model of images, one of several labels, one of values."""
    read = {"modality": "tensor", "shape": [4], "range": [-1, 1]}
    sets = {"backbone": {"source": "identity"}, "input": read, "task": "multilabel"}
    outputs = [{"name": "x", "min": 0, "max": 10}, {"name": "y", "min": -5, "max": 5}]
    values = {"backbone": {"source": "identity"}, "input": read, "task": "regression", "outputs": outputs}
    return [
        tiny.declaration(backbone, name="fuzzed"),
        json.dumps({"metadata": {"name": "sets"}, "spec": sets}),
        json.dumps({"metadata": {"name": "values"}, "spec": values}),
    ]


class Cases:
    """Makes messages of one seed."""

    def __init__(self, methods: list[Any], backbone: Path, seed: int) -> None:
        self.rng = random.Random(seed)
        self.methods = {method.full_name: method for method in methods}
        self._declarations = declarations(backbone)
        self._seeds: dict[str, list[Any]] = {}
        self._png, self._jpeg = encoded(tiny.images(1, 0)[0]), encoded(tiny.images(1, 0, side=40)[0], "JPEG")

    def of(self, method: Any) -> Case:
        """A message to any method."""
        kind = GetMessageClass(method.input_type)
        return self._spoilt(kind, self.rng.choice(self._seeds_of(method, kind)), self._hostile_of(method))

    def batch(self, model: str, sequence: int, *, ends: bool) -> Case:
        """A batch of a learning stream that is open; `ends`: maybe one that ends it, and else one that is rejected."""
        good = learn_pb2.LearnRequest(batch=self._batch(model))
        good.batch.sequence = sequence

        def hostile() -> Case:
            spoilt, what = self._hostile_batch(model)
            spoilt.sequence = sequence
            return Case(learn_pb2.LearnRequest(batch=spoilt).SerializeToString(), is_wrong=True, what=what)

        if ends:
            return self._spoilt(learn_pb2.LearnRequest, good, hostile)
        if self.rng.random() < 0.5:
            return hostile()
        strange = learn_pb2.LearnRequest.FromString(altered(good, self.rng))
        strange.batch.sequence = sequence
        return Case(strange.SerializeToString(), is_wrong=False, what="altered")

    def _spoilt(self, kind: Any, seed: Any, hostile: Callable[[], Case] | None) -> Case:
        rng, dice = self.rng, self.rng.random()
        if dice < 0.38:
            return self._judged(kind, mutated(seed.SerializeToString(), rng), "mutated")
        if dice < 0.65:
            return self._judged(kind, altered(seed, rng), "altered")
        if dice < 0.78:
            return Case(invalid_on_the_wire(seed.SerializeToString(), rng), is_wrong=True, what="wire")
        if dice < 0.82:
            return self._judged(kind, rng.randbytes(rng.randint(1, 80)), "noise")
        if dice < 0.825 and hostile is not None:
            return Case(rng.choice(self._bombs), is_wrong=True, what="bomb")
        if dice < 0.92 and hostile is not None:
            return hostile()
        return Case(seed.SerializeToString(), is_wrong=False, what="right")

    @staticmethod
    def _judged(kind: Any, data: bytes, what: str) -> Case:
        try:
            kind.FromString(data)
        except DecodeError:
            return Case(data, is_wrong=True, what=what)
        return Case(data, is_wrong=False, what=what)

    @cached_property
    def _bombs(self) -> list[bytes]:
        """Of fields that are known nowhere, so that they are bombs to every method."""
        return [b"\x98\xbf\x01\x01" * 2**17, b"\x9a\xbf\x01\x00" * 2**17, b"\x1b" * 2**19, b"\xff" * 2**19]

    # -- seeds

    def _seeds_of(self, method: Any, kind: Any) -> list[Any]:
        if method.full_name not in self._seeds:
            made = self._known(method.name) or [self._plausible(kind, method.name) for _ in range(4)]
            self._seeds[method.full_name] = [kind.FromString(each.SerializeToString()) for each in made]
        return self._seeds[method.full_name]

    def _known(self, name: str) -> list[Any]:
        if name in ("Predict", "PredictStream"):
            forms = [(model, samples) for model in MODELS for samples in self._samples(model)]
            return [
                predict_pb2.PredictRequest(
                    name=f"models/{model}", samples=samples, top_k=int(model == "fuzzed"), scores=True
                )
                for model, samples in forms
            ]
        if name == "Embed":
            return [learn_pb2.EmbedRequest(names=["models/fuzzed"], samples=each) for each in self._samples("fuzzed")]
        if name in ("ModelInfer", "ModelStreamInfer"):
            return self._infer_requests()
        return []

    def _plausible(self, kind: Any, method: str, depth: int = 0) -> Any:
        made = kind()
        for field in kind.DESCRIPTOR.fields:
            if field.containing_oneof is not None and self.rng.random() < 0.5:
                continue
            if field.message_type is not None:
                if depth < 3 and not field.is_repeated:
                    below = self._plausible(GetMessageClass(field.message_type), method, depth + 1)
                    getattr(made, field.name).CopyFrom(below)
            elif field.type == field.TYPE_STRING:
                text = self._text(field.name, method)
                getattr(made, field.name).append(text) if field.is_repeated else setattr(made, field.name, text)
            elif field.type == field.TYPE_BOOL:
                setattr(made, field.name, True)  # a dry run, above all
            elif field.type not in (field.TYPE_BYTES, field.TYPE_ENUM) and not field.is_repeated:
                setattr(made, field.name, 1)
        return made

    def _text(self, field: str, method: str) -> str:
        if field == "declaration":
            return self.rng.choice(self._declarations)
        if field in ("name", "names", "service"):
            if method in _NOT_THE_MODEL:
                return f"models/{NOBODY}" if "Operation" not in method else f"operations/{NOBODY}"
            return {"GetExport": "models/fuzzed/exports/1", "DownloadExport": "models/fuzzed/exports/1"}.get(
                method, "" if field == "service" else "models/fuzzed"
            )
        return _TEXTS.get(field, "fuzzed")

    def _samples(self, model: str) -> list[tensor_pb2.Samples]:
        if model != "fuzzed":
            return [tensor_pb2.Samples(tensors=to_tensor(np.full((2, 4), 0.5, np.float32)))]
        return [
            tensor_pb2.Samples(encoded_images=tensor_pb2.EncodedImages(images=[self._png, self._jpeg])),
            tensor_pb2.Samples(images=to_tensor(tiny.images(2, 0))),
            tensor_pb2.Samples(pixels=to_tensor(np.zeros((2, 3, 16, 16), np.float32))),
            tensor_pb2.Samples(features=to_tensor(np.ones((2, DIM), np.float32))),
        ]

    def _batch(self, model: str) -> learn_pb2.Batch:
        samples = self.rng.choice(self._samples(model))
        if model == "sets":
            return learn_pb2.Batch(samples=samples, label_sets=[learn_pb2.LabelSet(labels=["a"]), learn_pb2.LabelSet()])
        if model == "values":
            return learn_pb2.Batch(samples=samples, values=to_tensor(np.ones((2, 2), np.float32)))
        return learn_pb2.Batch(samples=samples, labels=["a", "b"])

    def _infer_requests(self) -> list[Any]:
        kind = message("ModelInferRequest")
        typed = kind(model_name="fuzzed", id="7")
        tensor = typed.inputs.add(name="features", datatype="FP32", shape=[1, DIM])
        tensor.contents.fp32_contents.extend([0.1] * DIM)
        raw = kind(model_name="fuzzed", raw_input_contents=[tiny.images(1, 0).tobytes()])
        raw.inputs.add(name="image", datatype="UINT8", shape=[1, 16, 16, 3])
        raw.outputs.add(name="scores").parameters["classification"].int64_param = 2
        raw.parameters["timeout"].int64_param = 5_000_000
        text = kind(model_name="fuzzed", raw_input_contents=[len(self._png).to_bytes(4, "little") + self._png])
        text.inputs.add(name="encoded", datatype="BYTES", shape=[1])
        table = kind(model_name="values", raw_input_contents=[bytes(16)])
        table.inputs.add(name="tensor", datatype="FP32", shape=[1, 4])
        return [typed, raw, text, table]

    # -- values that no server may take

    def _hostile_of(self, method: Any) -> Callable[[], Case] | None:
        name = method.name
        if name in ("PlanModel", "ApplyModel", "LockModel"):
            return lambda: self._hostile_declaration(method)
        if name in ("Predict", "PredictStream"):
            return lambda: self._hostile_predict()
        if name in ("ModelInfer", "ModelStreamInfer"):
            return self._hostile_infer
        return None

    def _hostile_predict(self) -> Case:
        samples, what = self._hostile_samples("fuzzed")
        data = predict_pb2.PredictRequest(name="models/fuzzed", samples=samples).SerializeToString()
        return Case(data, is_wrong=True, what=what)

    def _hostile_samples(self, model: str) -> tuple[tensor_pb2.Samples, str]:
        nan = np.full((2, DIM), np.nan, np.float32)
        kind = tensor_pb2.Samples
        images = tensor_pb2.EncodedImages
        made: dict[str, tensor_pb2.Samples] = {
            "wrong width": kind(features=to_tensor(np.ones((2, DIM + 1), np.float32))),
            "not a number": kind(features=to_tensor(nan)),
            "not finite": kind(pixels=to_tensor(np.full((2, 3, 16, 16), np.inf, np.float32))),
            "wrong axes": kind(images=to_tensor(np.zeros((2, 16, 16), np.uint8))),
            "huge shape": kind(images=tensor_pb2.Tensor(data_type=1, shape=[2, 2**40, 2**40, 3], data=b"abc")),
            "negative shape": kind(features=tensor_pb2.Tensor(data_type=F32, shape=[-2, -16], data=bytes(128))),
            "no type": kind(features=tensor_pb2.Tensor(shape=[2, DIM], data=bytes(8 * DIM))),
            "half an image": kind(encoded_images=images(images=[self._png, self._jpeg[: len(self._jpeg) // 2]])),
            "no image": kind(encoded_images=images(images=[b"\x89PNG\r\n\x1a\n" + bytes(50), self._png])),
            "text for images": kind(texts=tensor_pb2.Texts(texts=["a", "b"])),
            "nothing": kind(),
        }
        if model != "fuzzed":
            made = {
                "wrong width": kind(tensors=to_tensor(np.ones((2, 5), np.float32))),
                "not a number": kind(tensors=to_tensor(np.full((2, 4), np.nan, np.float32))),
                "huge": kind(tensors=to_tensor(np.full((2, 4), 3e38, np.float32))),
                "images for a table": kind(images=to_tensor(tiny.images(2, 0))),
            }
        what = self.rng.choice(list(made))
        return made[what], what

    def _hostile_batch(self, model: str) -> tuple[learn_pb2.Batch, str]:
        if self.rng.random() < 0.6:
            batch = self._batch(model)
            samples, what = self._hostile_samples(model)
            batch.samples.CopyFrom(samples)
            return batch, what
        good = self.rng.choice(self._samples(model))
        kind = learn_pb2.Batch
        wrong = {
            "one label for two": kind(samples=good, labels=["a"]),
            "a label too long": kind(samples=good, labels=["a", "b" * 300]),
            "control characters": kind(samples=good, labels=["a", "\x1b[2J"]),
            "no label": kind(samples=good),
            "values beyond their range": kind(samples=good, values=to_tensor(np.full((2, 2), 1e9, np.float32))),
            "values that are none": kind(samples=good, values=to_tensor(np.full((2, 2), np.nan, np.float32))),
            "two truths": kind(samples=good, labels=["a", "b"], values=to_tensor(np.ones((2, 2), np.float32))),
            "a set with twins": kind(samples=good, label_sets=[learn_pb2.LabelSet(labels=["a", "a"])] * 2),
        }
        what = self.rng.choice(list(wrong))
        return wrong[what], what

    def _hostile_infer(self) -> Case:
        request = message("ModelInferRequest")()
        request.CopyFrom(self.rng.choice(self._infer_requests()[:3]))
        what = self.rng.choice(("shape", "bytes", "datatype", "name", "twice", "both", "none"))
        tensor = request.inputs[0]
        if what == "shape":
            del tensor.shape[:]
            tensor.shape.extend(self.rng.choice(([2**40] * 4, [-1, 3], [0], [1] * 1000, [])))
        elif what == "bytes":
            del request.raw_input_contents[:]
            request.raw_input_contents.append(b"\x05\0\0\0abc")
            request.inputs[0].ClearField("contents")
        elif what == "datatype":
            tensor.datatype = self.rng.choice(("FP64", "", "PICKLE", "é" * 100))
        elif what == "name":
            tensor.name = self.rng.choice(("", "../features", "x" * 5000))
        elif what == "twice":
            request.inputs.add().CopyFrom(tensor)
        elif what == "both":
            request.raw_input_contents.extend([b"x"] * 2)
        else:
            del request.inputs[:]
        return Case(request.SerializeToString(), is_wrong=True, what=f"infer {what}")

    def _hostile_declaration(self, method: Any) -> Case:
        aliases = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
            f"{chr(98 + i)}: &{chr(98 + i)} [{','.join([f'*{chr(97 + i)}'] * 9)}]\n" for i in range(8)
        )
        texts = {
            "aliases": aliases,
            "a tag": "!!python/object/apply:os.system ['true']",
            "deep": "[" * self.rng.randint(17, 20_000),
            "deep json": '{"a":' * self.rng.randint(17, 20_000),
            "a huge scalar": "metadata: {name: " + "a" * 270_000 + "}",
            "a number of thousands of digits": '{"metadata": ' + "9" * 5000 + "}",
            "many keys": "\n".join(f"k{i}: 1" for i in range(self.rng.randint(1, 2000))),
            "nothing": "",
            "a list": "- a\n- b",
            "two documents": "a: 1\n---\nb: 2",
            "control": "metadata: {name: \x01}",
            "merge": "x: &x {a: 1}\nmetadata:\n  <<: *x",
            "a name": json.dumps({"metadata": {"name": "../x"}, "spec": {"backbone": {"source": "identity"}}}),
            "a source": json.dumps({"metadata": {"name": "x"}, "spec": {"backbone": {"source": "http://127.0.0.1/x"}}}),
        }
        what = self.rng.choice(list(texts))
        kind = GetMessageClass(method.input_type)
        return Case(kind(declaration=texts[what]).SerializeToString(), is_wrong=True, what=f"declaration: {what}")


def learn_bombs() -> list[bytes]:
    """For a stream. Small ones: the heap is to tell what is kept, and not how many came at the same time."""
    return list(bombs.learn_bombs(2**19).values())
