"""Answers as plain values. Resources (models, versions, plans, server info) are the contract's own messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from google.protobuf.message import Message

from everlearn_client.errors import EverlearnClientError, ServerBug, from_code, from_status
from everlearn_client.resource_names import model_name, version_name
from everlearn_client.samples import SampleInput, to_message
from everlearn_protos.arrays import from_tensor
from everlearn_protos.v1 import export_pb2, learn_pb2, models_pb2, predict_pb2, signing_pb2


@dataclass(frozen=True)
class ScoredLabel:
    """A class and its score."""

    label: str
    index: int
    score: float


@dataclass(frozen=True)
class Predictions:
    """What a version says about N samples."""

    version: str
    """`models/{model}/versions/{number}` that answered."""
    top: tuple[tuple[ScoredLabel, ...], ...]
    """For each sample the best classes, best first; of a multilabel model asked with top_k=0, the labels it has."""
    labels: tuple[str, ...]
    """Columns of `scores_NC`."""
    scores_NC: npt.NDArray[np.float32] | None
    queue_ms: float
    trunk_ms: float
    values_NK: npt.NDArray[np.float32] | None = None
    """Of a regression; columns are `labels`, and `top` is empty."""
    sample_ids: tuple[str, ...] = ()
    """For each sample, of a model that declares late_labels: what `Client.label` takes, once the label is known."""
    novelty: tuple[float, ...] = ()
    """For each sample, of a model that declares unknown: abstain: how unlike all learned classes it is. Beyond 1 the
    model abstains, and `top` is a guess."""

    @property
    def abstained(self) -> tuple[bool, ...]:
        """For each sample, whether the model knows nothing like it; empty of a model that answers all alike."""
        return tuple(not novelty <= 1 for novelty in self.novelty)  # not `>`: what is no number is unknown

    @classmethod
    def of(cls, response: predict_pb2.PredictResponse) -> Predictions:
        """From the wire."""
        scores = from_tensor(response.scores).astype(np.float32) if response.HasField("scores") else None
        top = tuple(tuple(ScoredLabel(s.label, s.index, s.score) for s in p.top) for p in response.predictions)
        values = from_tensor(response.values).astype(np.float32) if response.HasField("values") else None
        return cls(
            response.version,
            top,
            tuple(response.labels),
            scores,
            response.queue_ms,
            response.trunk_ms,
            values,
            tuple(response.sample_ids),
            tuple(response.novelty),
        )


@dataclass(frozen=True, eq=False)
class Embeddings:
    """Features of N samples for several models."""

    features_Nd: Mapping[str, npt.NDArray[np.float32]]
    """By feature digest (`status.input.feature_digest` of a model)."""
    passes: int
    """Backbones that ran on each sample."""
    trunk_ms: float

    @classmethod
    def of(cls, response: learn_pb2.EmbedResponse) -> Embeddings:
        """From the wire."""
        arrays = {each.feature_digest: from_tensor(each.features).astype(np.float32) for each in response.embeddings}
        return cls(arrays, response.passes, response.trunk_ms)


@dataclass(frozen=True)
class ExportFile:
    """One file of an export."""

    file_name: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class KeyRotation:
    """A key of the server's that gave way to the next, in words that both have signed (Ed25519)."""

    statement: bytes
    """JSON: kind, old, new, number, time."""
    by_old: bytes
    by_new: bytes

    @classmethod
    def of(cls, message: signing_pb2.KeyRotation) -> KeyRotation:
        """From the wire."""
        return cls(message.statement, message.signature_by_old, message.signature_by_new)


@dataclass(frozen=True)
class ExportInfo:
    """A version as files that run anywhere, checked to predict what the server predicts."""

    name: str
    version: str
    files: tuple[ExportFile, ...]
    parity_max_abs_diff: float
    """Largest difference of a score between file and server."""
    probes: int
    """Inputs that was measured on."""
    manifest: bytes = b""
    """What it is, as JSON; `signature` is the server's, Ed25519 (RFC 8032)."""
    signature: bytes = b""
    precision: str = "fp32"
    """Of the weights in the file; scores are float32 in any case."""
    key_rotations: tuple[KeyRotation, ...] = ()
    """How the key that signed it came from the server's first one, in order."""
    pointer: bytes = b""
    """Which alias it was asked for by, and the number of that alias's move, as JSON; signed, too. Empty of a number."""
    pointer_signature: bytes = b""

    @classmethod
    def of(cls, message: export_pb2.Export) -> ExportInfo:
        """From the wire."""
        files = tuple(ExportFile(f.file_name, f.size_bytes, f.sha256) for f in message.files)
        return cls(
            message.name,
            message.version,
            files,
            message.parity_max_abs_diff,
            message.probes,
            message.manifest,
            message.signature,
            message.precision or "fp32",
            tuple(KeyRotation.of(each) for each in message.key_rotations),
            message.pointer,
            message.pointer_signature,
        )


@dataclass(frozen=True)
class Applied:
    """What applying a declaration did."""

    plan: models_pb2.Plan
    model: models_pb2.Model | None
    """As it is now; None after a dry run of a new model."""
    operation: Any | None
    """google.longrunning.Operation still running where `wait=False`, else None."""


def predict_request(
    model: str, samples: SampleInput, *, version: str | int | None, top_k: int, scores: bool
) -> predict_pb2.PredictRequest:
    """Raises InvalidArgument."""
    name = model_name(model) if version is None else version_name(model, version)
    return predict_pb2.PredictRequest(name=name, samples=to_message(samples), top_k=top_k, scores=scores)


def export_request(model: str, version: str | int, *, student: bool, precision: str) -> export_pb2.CreateExportRequest:
    """Raises InvalidArgument."""
    return export_pb2.CreateExportRequest(version=version_name(model, version), student=student, precision=precision)


def embed_request(models: Sequence[str], samples: SampleInput) -> learn_pb2.EmbedRequest:
    """Raises InvalidArgument."""
    return learn_pb2.EmbedRequest(names=[model_name(model) for model in models], samples=to_message(samples))


def stream_outcome(response: predict_pb2.PredictStreamResponse) -> Predictions | EverlearnClientError:
    """One answer of a predict stream: an error concerns its own request only."""
    if response.WhichOneof("outcome") == "error":
        return from_code(response.error.code, response.error.message, response.error.field)
    return Predictions.of(response.response)


_OPERATION_MESSAGES: Sequence[type[Message]] = (models_pb2.Model, export_pb2.Export, models_pb2.ApplyProgress)


def operation_result(operation: Any) -> Message:
    """What a finished operation made. Raises its error."""
    if operation.HasField("error"):
        raise from_status(operation.error)
    result = unpack(operation.response)
    if result is None:
        raise ServerBug(f"operation {operation.name} answered with {operation.response.type_url!r}, unknown here")
    return result


def unpack(packed: Any) -> Message | None:
    """The message in an Any; None for a type this client does not know."""
    for kind in _OPERATION_MESSAGES:
        message = kind()
        if packed.Unpack(message):
            return message
    return None
