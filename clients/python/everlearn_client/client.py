"""The blocking client."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar, cast

import grpc
from google.longrunning import operations_grpc_pb2, operations_proto_pb2
from google.protobuf.message import Message

from everlearn_client import _learn_sync
from everlearn_client._channel import OPTIONS, Tls, call_metadata
from everlearn_client._download import DownloadCallback
from everlearn_client._downloading import Downloads
from everlearn_client._erasing import ERASE_TIMEOUT_S, EraseSession
from everlearn_client._inputs import BatchInput
from everlearn_client._late import Labelled, LabelReport, LateSession
from everlearn_client._learn import LearnSession, unheard
from everlearn_client._models import PREPARE_TIMEOUT_S, Models, ProgressCallback
from everlearn_client._raising import Raising
from everlearn_client._retry import Retry
from everlearn_client.errors import DeadlineExceeded, EverlearnClientError, Held, from_rpc_error
from everlearn_client.events import LearnEvent, LearnReport
from everlearn_client.receipts import ReceiptFile
from everlearn_client.resource_names import model_name
from everlearn_client.results import (
    Embeddings,
    ExportInfo,
    Predictions,
    embed_request,
    export_request,
    operation_result,
    predict_request,
    stream_outcome,
    unpack,
)
from everlearn_client.samples import SampleInput
from everlearn_protos.v1 import (
    erasure_pb2,
    erasure_pb2_grpc,
    export_pb2,
    export_pb2_grpc,
    learn_pb2,
    learn_pb2_grpc,
    models_pb2,
    predict_pb2_grpc,
    server_info_pb2,
    server_info_pb2_grpc,
)

DEFAULT_TARGET = "127.0.0.1:8470"
FIRST_POLL_S = 0.02
LONGEST_POLL_S = 1.0
EMBED_TIMEOUT_S = 120.0
"""Features wait behind predictions and other learners."""


Item = TypeVar("Item")
Request = TypeVar("Request", contravariant=True)
Response = TypeVar("Response", covariant=True)


class Unary(Protocol[Request, Response]):
    """A call of a stub: one message there, one back."""

    def __call__(self, request: Request, *, timeout: float | None, metadata: tuple[tuple[str, str], ...]) -> Response:
        """Waits for the answer; raises grpc.RpcError."""


class Client:
    """A connection to an everlearn server; safe to share between threads.

    >>> with Client("127.0.0.1:8470") as client:  # doctest: +SKIP
    ...     client.learn("digits", [(images_uint8, labels)])
    ...     client.predict("digits", images_uint8).top[0][0].label
    """

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        client_id: str | None = None,
        timeout_s: float = 30.0,
        tls: Tls | None = None,
        token: str | None = None,
    ) -> None:
        """Connects lazily. `client_id` is the learner's stable identity: with one of your own, learning is
        exactly-once across restarts of your program too; by default it is random and lives as long as the object.
        One of your own is also told with each call: so the server can say who has downloaded what.

        Raises InvalidArgument for a `client_id` that is no name.
        """
        self.metadata = call_metadata(target, tls=tls, token=token, client_id=client_id)
        self.client_id = client_id or f"py-{uuid.uuid4().hex[:12]}"
        self.timeout_s = timeout_s
        self.channel = (
            grpc.secure_channel(target, tls.credentials(), OPTIONS) if tls else grpc.insecure_channel(target, OPTIONS)
        )
        self.models = Models(self)
        self._learn = learn_pb2_grpc.LearnServiceStub(self.channel)
        self._held: dict[tuple[str, str], LearnSession] = {}
        """By model and learner: what was to be kept at the end of the last call."""
        self._predict = predict_pb2_grpc.PredictServiceStub(self.channel)
        self._export = export_pb2_grpc.ExportServiceStub(self.channel)
        self._downloads = Downloads(self, self._export)
        self._erasure = erasure_pb2_grpc.ErasureServiceStub(self.channel)
        self._info = server_info_pb2_grpc.ServerInfoServiceStub(self.channel)
        self._operations = operations_grpc_pb2.OperationsStub(self.channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection and whatever runs on it."""
        self.channel.close()

    def call(self, method: Unary[Request, Response], request: Request, *, timeout_s: float | None = None) -> Response:
        """One unary call of any stub, with this client's headers, errors, and its deadline unless another is given."""
        try:
            return method(request, timeout=self.timeout_s if timeout_s is None else timeout_s, metadata=self.metadata)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from None

    def info(self) -> server_info_pb2.ServerInfo:
        """What the server is and can do."""
        return self.call(self._info.GetServerInfo, server_info_pb2.GetServerInfoRequest())

    def learn(
        self,
        model: str,
        batches: Iterable[BatchInput],
        *,
        client_id: str | None = None,
        window: int = 64,
        first_sequence: int | None = None,
        feature_digest: str = "",
        timeline: str = "",
        step: str = "",
        receipts: ReceiptFile | None = None,
        on_event: Callable[[LearnEvent], None] | None = None,
        retry_for_s: float = 300.0,
    ) -> LearnReport:
        """Teaches a model and returns when every batch is durable or rejected.

        Each batch counts once, through broken connections and server restarts: up to `window` batches are kept here
        until they are durable, and sent again where needed. With `first_sequence=n` the i-th batch is number n + i
        for good, and those already durable are skipped: exactly-once across restarts of the caller as well.

        `feature_digest`: needed with `Features`; `timeline`: of an earlier report, to be told of a restored backup.
        `step`: the task, domain or season that batches belong to which name none themselves (`Batch.step`). It changes
        nothing of what is learned; when data of an earlier step come again, the model's report says what was forgotten.
        `receipts`: keeps what `erase` needs; with `first_sequence`, what is durable and has none there is sent again.
        All of it runs in the calling thread. While `batches` makes its next one, nothing is heard: a lost connection,
        a rejection or what has become durable is noticed when it yields. Where batches are minutes apart and that is
        too late, use AsyncClient. `on_event` is called between batches. An error of `batches` itself is raised after
        what came before it is durable. `retry_for_s`: seconds of failing in a row before the connection is given up.

        A model may promise to commit nothing until enough samples of enough learners have come (`privacy` of its
        declaration). What is left over at the end is then not durable: Held is raised some seconds later, says how
        much is missing, and the batches are kept here; the next call for this model and learner sends them again first.

        Raises Held, Fenced, TimelineChanged, SequenceGap, InvalidArgument, NotFound, FailedPrecondition, Unavailable.
        """
        session = LearnSession(
            model,
            client_id or self.client_id,
            window=window,
            first_sequence=first_sequence,
            feature_digest=feature_digest,
            timeline=timeline,
            step=step,
            receipts=receipts,
        )
        learner = session.model, session.client_id
        if learner in self._held:
            session.keep_from(self._held.pop(learner))
        try:
            return _learn_sync.learn(
                self.open_learn,
                session,
                batches,
                retry=Retry(give_up_after_s=retry_for_s),
                on_event=on_event or unheard,
            )
        except Held:
            self._held[learner] = session
            raise

    def open_learn(self, requests: Iterator[learn_pb2.LearnRequest]) -> Any:
        """The Learn call itself, for those who drive it themselves."""
        return self._learn.Learn(requests, metadata=self.metadata)

    def label(
        self, model: str, pairs: Iterable[Labelled], *, client_id: str | None = None, step: str = ""
    ) -> LabelReport:
        """Teaches what was true of samples that `predict` was asked about, by their ids, days later if need be; returns
        when each is durable, once, or refused. The model declares late_labels. Raises as `learn`."""
        late = LateSession(pairs)
        while batches := late.batches():
            late.took(self.learn(model, batches, client_id=client_id, step=step, on_event=late.hear))
        return late.report()

    def erase(
        self,
        model: str,
        *,
        client_id: str = "",
        label: str = "",
        receipts: str | Path | None = None,
        partial: bool = False,
        dry_run: bool = False,
        timeout_s: float = ERASE_TIMEOUT_S,
    ) -> erasure_pb2.EraseReport:
        """Takes out of a model what one client contributed, or a class, and returns what was done, with the server's
        signature on it.

        `receipts`: the file that the client's `learn` filled. Where its receipts are not all that was learned, nothing
        happens, unless with `partial`. The versions that contained it are withdrawn. `dry_run`: only says what would.

        Raises FailedPrecondition (reasons NOT_ERASABLE, RECEIPTS_INCOMPLETE), NotFound, InvalidArgument.
        """
        session = EraseSession(
            model, client_id=client_id, label=label, receipts=receipts, partial=partial, dry_run=dry_run
        )
        try:
            for response in self._erasure.Erase(session.requests(), timeout=timeout_s, metadata=self.metadata):
                session.hear(response)
        except grpc.RpcError as error:
            raise session.failure or from_rpc_error(error) from None
        return session.result()

    def erasures(self, model: str) -> Iterator[erasure_pb2.Erasure]:
        """What was taken out of a model, oldest first, page by page as they are asked for."""
        token = ""
        while True:
            request = erasure_pb2.ListErasuresRequest(parent=model_name(model), page_token=token)
            page = self.call(self._erasure.ListErasures, request)
            yield from page.erasures
            token = page.next_page_token
            if not token:
                return

    def embed(self, models: Sequence[str], samples: SampleInput, *, timeout_s: float = EMBED_TIMEOUT_S) -> Embeddings:
        """Features of samples for several models at once, to be taught as `Features`; learns nothing.

        A backbone runs once however many of the models are on it.
        """
        request = embed_request(models, samples)
        return Embeddings.of(self.call(self._learn.Embed, request, timeout_s=timeout_s))

    def predict(
        self,
        model: str,
        samples: SampleInput,
        *,
        version: str | int | None = None,
        top_k: int = 0,
        scores: bool = False,
    ) -> Predictions:
        """The best classes of each sample, by the `stable` version unless another is named.

        `top_k`: how many; 0 is the best one, or of a multilabel model the labels that the sample has. Of a regression
        the answer is `values_NK`.
        """
        request = predict_request(model, samples, version=version, top_k=top_k, scores=scores)
        return Predictions.of(self.call(self._predict.Predict, request))

    def predict_stream(
        self,
        model: str,
        batches: Iterable[SampleInput],
        *,
        version: str | int | None = None,
        top_k: int = 0,
        scores: bool = False,
    ) -> Iterator[Predictions | EverlearnClientError]:
        """Answers in the order of `batches`. An error of one batch is yielded in its place and the stream goes on."""
        requests = (predict_request(model, b, version=version, top_k=top_k, scores=scores) for b in batches)
        source = Raising(requests)
        call = self._predict.PredictStream(source, metadata=self.metadata)
        try:
            for response in call:
                yield stream_outcome(response)
        except grpc.RpcError as error:
            raise source.error or from_rpc_error(error) from None
        finally:
            call.cancel()

    def export(
        self,
        model: str,
        version: str | int = "stable",
        *,
        student: bool = False,
        precision: str = "",
        timeout_s: float = PREPARE_TIMEOUT_S,
    ) -> ExportInfo:
        """Has a version turned into one ONNX file, checked against the server. The same version is the same export.

        `student`: the small network that imitates the model, as it is now, under that version's head; raises
        FailedPrecondition where the two agree too little. `precision`: by default the server's own; `fp16` stores the
        weights in half the bytes; `int8` computes in 8 bits, and raises FailedPrecondition where the model has not
        shown enough for that yet. So does any but `int8` where the model learns in 8 bits itself.
        """
        request = export_request(model, version, student=student, precision=precision)
        operation = self.call(self._export.CreateExport, request)
        return ExportInfo.of(cast(export_pb2.Export, self.wait(operation, timeout_s=timeout_s)))

    def exports(self, model: str) -> Iterator[ExportInfo]:
        """All exports of a model, page by page as they are asked for."""
        token = ""
        while True:
            request = export_pb2.ListExportsRequest(parent=model_name(model), page_token=token)
            page = self.call(self._export.ListExports, request)
            yield from map(ExportInfo.of, page.exports)
            token = page.next_page_token
            if not token:
                return

    def download(
        self,
        export: ExportInfo,
        folder: str | Path,
        *,
        base: str | Path | None = None,
        on_progress: DownloadCallback | None = None,
        retry_for_s: float = 120.0,
    ) -> list[Path]:
        """Fetches all files of an export, going on where an earlier attempt stopped; files already there are kept.

        `base`: a folder with an earlier version's: where that is cheaper, only the differences travel, of a new head
        some kilobytes. Raises DataLoss where what arrives is not what the export announced, InvalidArgument where
        differences cannot be read here.
        """
        known = None if base is None else Path(base)
        return self._downloads.fetch(export, Path(folder), base=known, on_progress=on_progress, retry_for_s=retry_for_s)

    def wait(
        self,
        operation: Any,
        *,
        on_progress: ProgressCallback | None = None,
        timeout_s: float = PREPARE_TIMEOUT_S,
    ) -> Message:
        """Waits for a google.longrunning.Operation and returns what it made. Raises its error, DeadlineExceeded."""
        deadline_s, delay_s = time.monotonic() + timeout_s, FIRST_POLL_S
        while True:
            progress = unpack(operation.metadata)
            if on_progress is not None and isinstance(progress, models_pb2.ApplyProgress):
                on_progress(progress)
            if operation.done:
                return operation_result(operation)
            if time.monotonic() + delay_s > deadline_s:
                raise DeadlineExceeded(f"operation {operation.name} is not done after {timeout_s:g} s; it goes on")
            time.sleep(delay_s)
            delay_s = min(LONGEST_POLL_S, delay_s * 1.5)
            request = operations_proto_pb2.GetOperationRequest(name=operation.name)
            operation = self.call(self._operations.GetOperation, request)
