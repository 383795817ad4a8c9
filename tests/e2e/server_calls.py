"""Calls of a real server below the SDK: raw bytes where needed, and every refusal read as programs read it."""

from __future__ import annotations

import io
import queue
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
from google.longrunning import operations_grpc_pb2, operations_proto_pb2
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from PIL import Image

from everlearn_protos.arrays import to_tensor
from everlearn_protos.v1 import (
    export_pb2_grpc,
    learn_pb2,
    models_pb2,
    models_pb2_grpc,
    predict_pb2,
    predict_pb2_grpc,
    server_info_pb2_grpc,
    tensor_pb2,
)

TIMEOUT_S = 120.0
"""Of one call: no test waits for ever on a server that does not answer."""


class Stubs:
    """All services over one channel; a context manager."""

    def __init__(self, address: str) -> None:
        self.channel = grpc.insecure_channel(address, [("grpc.max_send_message_length", -1)])
        self.models: Any = models_pb2_grpc.ModelServiceStub(self.channel)
        self.exports: Any = export_pb2_grpc.ExportServiceStub(self.channel)
        self.predictions: Any = predict_pb2_grpc.PredictServiceStub(self.channel)
        self.operations: Any = operations_grpc_pb2.OperationsStub(self.channel)
        self.info: Any = server_info_pb2_grpc.ServerInfoServiceStub(self.channel)

    def __enter__(self) -> Stubs:
        return self

    def __exit__(self, *_: object) -> None:
        self.channel.close()

    def learn(self, model: str, client: str, *, open_: bool = True, **fields: Any) -> Conversation:
        """A learning stream; with `open_` it is open when this returns."""
        conversation = Conversation(self.channel)
        if open_:
            conversation.open(model, client, **fields)
        return conversation

    def wait(self, operation: Any) -> Any:
        """The finished operation."""
        request = operations_proto_pb2.WaitOperationRequest(name=operation.name)
        request.timeout.FromSeconds(15)
        done = self.operations.WaitOperation(request, timeout=TIMEOUT_S)
        assert done.done, f"{operation.name} is still at work"
        return done


class Conversation:
    """One Learn call, spoken message by message; a context manager that cancels what is left."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.opened = learn_pb2.Opened()
        method = channel.stream_stream(
            "/everlearn.v1.LearnService/Learn",
            request_serializer=lambda message: message if isinstance(message, bytes) else message.SerializeToString(),
            response_deserializer=learn_pb2.LearnResponse.FromString,
        )
        self._call = method(iter(self._requests.get, None), timeout=TIMEOUT_S)

    def __enter__(self) -> Conversation:
        return self

    def __exit__(self, *_: object) -> None:
        self._requests.put(None)
        self._call.cancel()

    def open(self, model: str, client: str, **fields: Any) -> learn_pb2.Opened:
        """Sends Open and returns the answer; raises grpc.RpcError where it is refused."""
        self.send(learn_pb2.LearnRequest(open=learn_pb2.Open(model=f"models/{model}", client=client, **fields)))
        response = next(self._call)
        assert response.WhichOneof("response") == "opened"
        self.opened = response.opened
        return self.opened

    def send(self, message: learn_pb2.LearnRequest | bytes) -> None:
        """Any message, or bytes that are none."""
        self._requests.put(message)

    def batch(self, sequence: int, samples: Any, labels: Sequence[str]) -> None:
        """Sends a batch; samples in any form that `samples_of` takes."""
        self.send(batch(sequence, samples, labels))

    def hear(self, kind: str) -> Any:
        """The next message of a kind; `durable` may come in between the others and is passed over."""
        while True:
            response = next(self._call)
            found = response.WhichOneof("response")
            if found == kind:
                return getattr(response, kind)
            assert found == "durable", f"{kind} was expected, not {response}"

    def finish(self) -> list[learn_pb2.LearnResponse]:
        """Half-closes and returns all that still comes."""
        self._requests.put(None)
        return list(self._call)

    def __iter__(self) -> Iterator[learn_pb2.LearnResponse]:
        return self._call

    def __next__(self) -> learn_pb2.LearnResponse:
        response: learn_pb2.LearnResponse = next(self._call)
        return response


def batch(sequence: int, samples: Any, labels: Sequence[str]) -> learn_pb2.LearnRequest:
    """A learn message."""
    content = learn_pb2.Batch(sequence=sequence, labels=labels, samples=samples_of(samples))
    return learn_pb2.LearnRequest(batch=content)


def samples_of(samples: Any) -> tensor_pb2.Samples:
    """From a Samples message, a list of image files, uint8 images or float32 features."""
    if isinstance(samples, tensor_pb2.Samples):
        return samples
    if isinstance(samples, list):
        return tensor_pb2.Samples(encoded_images=tensor_pb2.EncodedImages(images=samples))
    if samples.dtype == np.uint8:
        return tensor_pb2.Samples(images=to_tensor(samples))
    if samples.ndim == 4:
        return tensor_pb2.Samples(pixels=to_tensor(samples))
    return tensor_pb2.Samples(features=to_tensor(samples))


def predict_request(name: str, samples: Any, **fields: Any) -> predict_pb2.PredictRequest:
    """`name` is a model or `model/versions/x`."""
    return predict_pb2.PredictRequest(name=f"models/{name}", samples=samples_of(samples), **fields)


def encoded(image_HWC: npt.NDArray[np.uint8], form: str = "PNG") -> bytes:
    """An image file; PNG and lossless WebP keep every grey level."""
    buffer = io.BytesIO()
    options: dict[str, Any] = {"lossless": True} if form == "WEBP" else {}
    Image.fromarray(image_HWC).save(buffer, form, **options)
    return buffer.getvalue()


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """A refusal as a program reads it, from the rich details."""

    code: str
    message: str
    reason: str
    domain: str
    metadata: dict[str, str] = field(default_factory=dict)
    violations: tuple[str, ...] = ()
    """Field paths of BadRequest."""
    retry_after_s: float | None = None


def refusal_of(call: Callable[[], object]) -> Refusal:
    """Makes the call and reads how it was refused; fails if it was not."""
    try:
        result = call()
    except grpc.RpcError as error:
        return _refusal(error)
    raise AssertionError(f"not refused: {result}")


def refused(call: Callable[[], object], code: str, *, field: str = "", reason: str = "", says: str = "") -> Refusal:
    """Asserts the status, ErrorInfo, and for a wrong value the field's path in BadRequest."""
    found = refusal_of(call)
    assert found.code == code, found
    assert found.domain == "everlearn", found
    assert not reason or found.reason == reason, found
    assert says in found.message, found
    if field:
        assert found.metadata.get("field") == field, found
        assert found.violations == ((field,) if code == "INVALID_ARGUMENT" else ()), found
    return found


def apply_request(declaration: str, **fields: Any) -> models_pb2.ApplyModelRequest:
    """For the raw stub."""
    return models_pb2.ApplyModelRequest(declaration=declaration, **fields)


def _refusal(error: Any) -> Refusal:
    status = rpc_status.from_call(error)
    info = error_details_pb2.ErrorInfo()
    violations: list[str] = []
    retry_after_s: float | None = None
    for detail in status.details if status is not None else ():
        bad, retry = error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
        if detail.Unpack(bad):
            violations += [violation.field for violation in bad.field_violations]
        elif detail.Unpack(retry):
            retry_after_s = retry.retry_delay.ToNanoseconds() / 1e9
        else:
            detail.Unpack(info)
    return Refusal(
        code=error.code().name,
        message=error.details(),
        reason=info.reason,
        domain=info.domain,
        metadata=dict(info.metadata),
        violations=tuple(violations),
        retry_after_s=retry_after_s,
    )
