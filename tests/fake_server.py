"""A small everlearn server on a real port, in dictionaries, with faults to order: a test double for the client.

It follows the comments of the .proto files and nothing else. `committed` counts every effect, so that a batch
counted twice or lost shows.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.longrunning import operations_grpc_pb2
from tests.fake_services import Export, Info, Models, Operations, Predict, abort

from everlearn_protos.v1 import (
    export_pb2_grpc,
    learn_pb2,
    learn_pb2_grpc,
    models_pb2,
    models_pb2_grpc,
    predict_pb2_grpc,
    server_info_pb2_grpc,
)


@dataclass
class Faults:
    """What goes wrong, and when. Counts are of one connection; each fault fires once unless it says otherwise."""

    drop_after: list[int] = field(default_factory=list)
    """Break the n-th connection after this many batches; what was not committed is lost."""
    lose_durables: int = 0
    """Commit, then break before the Durable leaves, this many times."""
    reject: set[int] = field(default_factory=set)
    """Sequences that are rejected, always."""
    end_with: tuple[str, str] | None = None
    """(status, reason) that ends every stream after its first batch."""
    busy_opens: int = 0
    """Answer this many opens with RESOURCE_EXHAUSTED and a RetryInfo."""
    answer_delay_s: float = 0.0
    commit_every: int = 4
    credits: int = 8
    cut_download_after: list[int] = field(default_factory=list)
    """Break the n-th download after this many chunks."""
    corrupt_download_chunks: set[int] = field(default_factory=set)
    """Ordinals, over all downloads, of chunks that arrive with a flipped byte."""
    unavailable_calls: int = 0
    """Answer this many Predict calls with UNAVAILABLE."""
    declare_delay_s: float = 0.0
    """PlanModel, ApplyModel and LockModel take this long."""


@dataclass
class _Learner:
    epoch: int = 0
    durable: int = 0


class FakeServer:
    """`with FakeServer() as server: Client(server.target)`. `restart` keeps what is durable and forgets the rest."""

    def __init__(self) -> None:
        self.faults = Faults()
        self.timeline = "t1"
        self.models: dict[str, models_pb2.Model] = {}
        self.learners: dict[tuple[str, str], _Learner] = {}
        self.committed: Counter[tuple[str, int]] = Counter()
        self.labels: Counter[str] = Counter()
        self.max_samples = 0
        self.max_in_flight = 0
        self.max_message_bytes = 0
        self.opens: list[learn_pb2.Open] = []
        self.metadata: list[dict[str, str]] = []
        self.operations: dict[str, list[Any]] = {}
        self.files: dict[str, bytes] = {"model.onnx": bytes(range(256)) * 40, "MODEL_CARD.md": b"# card\n"}
        self.downloads: list[int] = []
        self.calls: Counter[str] = Counter()
        self.connections = 0
        self.chunks = 0
        self.lock = threading.Lock()
        self._port = 0
        self._server: grpc.Server | None = None

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self._port}"

    def start(self) -> None:
        self._server = grpc.server(ThreadPoolExecutor(16), options=[("grpc.so_reuseport", 0)])
        models_pb2_grpc.add_ModelServiceServicer_to_server(Models(self), self._server)
        learn_pb2_grpc.add_LearnServiceServicer_to_server(_Learn(self), self._server)
        predict_pb2_grpc.add_PredictServiceServicer_to_server(Predict(self), self._server)
        export_pb2_grpc.add_ExportServiceServicer_to_server(Export(self), self._server)
        server_info_pb2_grpc.add_ServerInfoServiceServicer_to_server(Info(self), self._server)
        operations_grpc_pb2.add_OperationsServicer_to_server(Operations(self), self._server)
        self._port = self._server.add_insecure_port(f"127.0.0.1:{self._port}")
        self._server.start()

    def stop(self) -> None:
        if self._server is not None:
            self._server.stop(0).wait()
            self._server = None

    def restart(self) -> None:
        self.stop()
        self.start()

    def __enter__(self) -> FakeServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def ready_model(self, name: str = "digits", *, feature_digest: str = "f00d") -> models_pb2.Model:
        """A model that needs no apply."""
        model = models_pb2.Model(
            name=f"models/{name}",
            declaration=f"apiVersion: everlearn/v1\nkind: Model\nmetadata:\n  name: {name}\nspec:\n  backbone: b0\n",
            generation=1,
            etag="1",
        )
        model.status.state = models_pb2.ModelStatus.READY
        model.status.input.height = model.status.input.width = 8
        model.status.input.feature_digest = feature_digest
        model.status.aliases["stable"] = 1
        self.models[model.name] = model
        return model


class _Learn(learn_pb2_grpc.LearnServiceServicer):
    def __init__(self, server: FakeServer) -> None:
        self.s = server

    def Learn(  # noqa: N802  # gRPC's name
        self, request_iterator: Iterator[learn_pb2.LearnRequest], context: grpc.ServicerContext
    ) -> Iterator[learn_pb2.LearnResponse]:
        s = self.s
        opening = next(request_iterator).open
        s.opens.append(opening)
        s.metadata.append(dict(context.invocation_metadata()))
        learner = self._admit(opening, context)
        with s.lock:
            s.connections += 1
            drop_after = s.faults.drop_after.pop(0) if s.faults.drop_after else None
        epoch, contract = learner.epoch, models_pb2.InputContract(max_batch_samples=s.max_samples)
        yield learn_pb2.LearnResponse(
            opened=learn_pb2.Opened(
                epoch=epoch,
                durable_sequence=learner.durable,
                timeline=s.timeline,
                credits=s.faults.credits,
                input=contract,
            )
        )
        arrived: queue.Queue[learn_pb2.Batch | None] = queue.Queue()
        threading.Thread(target=_pump, args=(request_iterator, arrived), daemon=True).start()
        yield from self._batches(opening, learner, arrived, drop_after, context)

    def _admit(self, opening: learn_pb2.Open, context: grpc.ServicerContext) -> _Learner:
        s = self.s
        if opening.model not in s.models:
            abort(context, "NOT_FOUND", f"no model {opening.model}", reason="NOT_FOUND", field="open.model")
        if s.faults.busy_opens:
            s.faults.busy_opens -= 1
            abort(context, "RESOURCE_EXHAUSTED", "busy", reason="QUEUE_FULL", retry_after_s=0.05)
        if opening.timeline and opening.timeline != s.timeline:
            abort(context, "ABORTED", "restored", reason="TIMELINE_CHANGED")
        learner = s.learners.setdefault((opening.model, opening.client), _Learner())
        if opening.epoch == 0:
            learner.epoch += 1
        elif opening.epoch < learner.epoch:
            abort(context, "ABORTED", "a newer epoch exists", reason="FENCED")
        return learner

    def _batches(
        self,
        opening: learn_pb2.Open,
        learner: _Learner,
        arrived: queue.Queue[learn_pb2.Batch | None],
        drop_after: int | None,
        context: grpc.ServicerContext,
    ) -> Iterator[learn_pb2.LearnResponse]:
        s, epoch, tail = self.s, learner.epoch, learner.durable
        staged: list[learn_pb2.Batch] = []
        seen = 0
        while (batch := arrived.get()) is not None:
            if batch is _CUT:
                return
            if drop_after is not None and seen >= drop_after:
                abort(context, "UNAVAILABLE", "cut")
            seen += 1
            s.max_message_bytes = max(s.max_message_bytes, batch.ByteSize())
            # Not the end of the stream, which waits in line too.
            waiting = sum(each is not None and each is not _CUT for each in tuple(arrived.queue))
            s.max_in_flight = max(s.max_in_flight, 1 + waiting)
            time.sleep(s.faults.answer_delay_s)
            if learner.epoch != epoch:
                abort(context, "ABORTED", "a newer epoch exists", reason="FENCED")
            if s.faults.end_with:
                abort(context, s.faults.end_with[0], "as ordered", reason=s.faults.end_with[1])
            if batch.sequence > tail + 1:
                metadata = {"expected": str(tail + 1)}
                abort(context, "FAILED_PRECONDITION", "gap", reason="SEQUENCE_GAP", metadata=metadata)
            duplicate = batch.sequence <= tail
            if not duplicate:
                staged.append(batch)
                tail = batch.sequence
            yield self._answer(batch, duplicate)
            if len(staged) >= s.faults.commit_every:
                yield self._commit(opening, learner, staged, context)
        yield self._commit(opening, learner, staged, context)

    def _answer(self, batch: learn_pb2.Batch, duplicate: bool) -> learn_pb2.LearnResponse:
        credits = self.s.faults.credits
        if batch.sequence in self.s.faults.reject:
            return learn_pb2.LearnResponse(
                rejected=learn_pb2.Rejected(
                    sequence=batch.sequence,
                    code="INVALID_ARGUMENT",
                    field="batch.samples.encoded_images.images[0]",
                    message="not an image",
                    credits=credits,
                )
            )
        count = len(batch.labels)
        return learn_pb2.LearnResponse(
            received=learn_pb2.Received(
                sequence=batch.sequence,
                samples=count,
                correct=count,
                prequential=models_pb2.Prequential(tested=count, correct=count, accuracy=1.0, windowed_accuracy=1.0),
                classes_seen=len(set(self.s.labels) | set(batch.labels)),
                regularization=0.5,
                times=learn_pb2.StageTimes(trunk_ms=1.5),
                credits=credits,
                duplicate=duplicate,
            )
        )

    def _commit(
        self,
        opening: learn_pb2.Open,
        learner: _Learner,
        staged: list[learn_pb2.Batch],
        context: grpc.ServicerContext,
    ) -> learn_pb2.LearnResponse:
        s = self.s
        with s.lock:
            for batch in staged:
                learner.durable = batch.sequence
                if batch.sequence not in s.faults.reject:
                    s.committed[(opening.client, batch.sequence)] += 1
                    s.labels.update(batch.labels)
        staged.clear()
        if s.faults.lose_durables:
            s.faults.lose_durables -= 1
            abort(context, "UNAVAILABLE", "cut after the commit")
        durable = learn_pb2.Durable(sequence=learner.durable, commit_id=learner.durable, timeline=s.timeline, version=1)
        return learn_pb2.LearnResponse(durable=durable)


_CUT = learn_pb2.Batch()


def _pump(requests: Iterator[learn_pb2.LearnRequest], arrived: queue.Queue[learn_pb2.Batch | None]) -> None:
    try:
        for request in requests:
            arrived.put(request.batch)
    except Exception:
        arrived.put(_CUT)  # gRPC raises a bare Exception; what is staged stays uncommitted
    else:
        arrived.put(None)
