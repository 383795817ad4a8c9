"""everlearn.v1.LearnService: the wire side of a learning stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator

import grpc

from everlearn.errors import EverlearnError, InputError, InvalidError
from everlearn.inputs.samples import EncodedImages
from everlearn.spec.model import NAME
from everlearn_protos.arrays import to_tensor
from everlearn_protos.v1 import learn_pb2, models_pb2
from everlearn_server.engine.engine import Engine
from everlearn_server.engine.learning import CREDITS, LearnBatch, LearnStream
from everlearn_server.engine.outbox import DurableUpTo, Received
from everlearn_server.errors import status_of
from everlearn_server.rpc import names, wire
from everlearn_server.rpc.caller import client_of
from everlearn_server.rpc.messages import input_contract
from everlearn_server.rpc.samples import learned_of, samples_of, truth_of

MAX_EMBEDDED = 256
"""Models that one call may name."""
_EMPTY = EncodedImages(())


class LearnService:
    """Translates; the engine's LearnStream does the work."""

    NAME = "everlearn.v1.LearnService"

    def __init__(self, engine: Engine, *, heartbeat_bytes: int) -> None:
        """`heartbeat_bytes`: what learners are asked to send when all they sent is durable."""
        self._engine = engine
        self._heartbeat_bytes = heartbeat_bytes

    def handler(self) -> grpc.GenericRpcHandler:
        """To register with the server."""
        return wire.service(
            self.NAME,
            {"Learn": wire.bidirectional(self.learn), "Embed": wire.unary(learn_pb2.EmbedRequest, self.embed)},
        )

    async def learn(
        self, requests: AsyncIterator[bytes], context: wire.Context
    ) -> AsyncGenerator[learn_pb2.LearnResponse, None]:
        """First Open, then batches in the order of their sequence."""
        first = await anext(aiter(requests), None)
        message = wire.parse(learn_pb2.LearnRequest, first or b"")
        if message.WhichOneof("request") != "open":
            raise InvalidError("a stream begins with `open`", field="open")
        client_of(context)
        stream = await self._open(message.open)
        reader = asyncio.create_task(_read(requests, stream))
        try:
            yield self._opened(stream, message.open)
            async for event in stream.events():
                yield _received(event) if isinstance(event, Received) else self._durable(event)
        finally:
            reader.cancel()
            await stream.close()

    async def embed(self, request: learn_pb2.EmbedRequest, _: wire.Context) -> learn_pb2.EmbedResponse:
        """Features for several models, each backbone run once."""
        if not 1 <= len(request.names) <= MAX_EMBEDDED:
            raise InvalidError(f"{len(request.names)} models; name 1 to {MAX_EMBEDDED}", field="names")
        models = []
        for index, name in enumerate(request.names):
            field = f"names[{index}]"
            models.append(self._engine.model(names.model_of(name, field=field), field=field))
        embedded = await self._engine.embed(models, samples_of(request.samples, field="samples"))
        return learn_pb2.EmbedResponse(
            embeddings=[
                learn_pb2.Embedding(feature_digest=digest, features=to_tensor(features_Bd))
                for digest, features_Bd in embedded.features_Bd.items()
            ],
            passes=embedded.passes,
            trunk_ms=embedded.trunk_s * 1e3,
        )

    async def _open(self, opening: learn_pb2.Open) -> LearnStream:
        model = self._engine.model(names.model_of(opening.model, field="open.model"), field="open.model")
        if not names.NAME_PATTERN.fullmatch(opening.client):
            raise InvalidError(names.unlike(opening.client, NAME), field="open.client")
        if opening.receipts and opening.durable_only:
            raise InvalidError(
                "receipts come in the answers that this leaves out; set one of them", field="open.durable_only"
            )
        stream = LearnStream(
            model,
            self._engine.queue,
            client=opening.client,
            feature_digest=opening.feature_digest,
            require_room=self._engine.require_room,
            receipts=opening.receipts,
            durable_only=opening.durable_only,
        )
        await stream.open(epoch=opening.epoch, timeline=opening.timeline, present_timeline=self._engine.timeline)
        return stream

    def _opened(self, stream: LearnStream, opening: learn_pb2.Open) -> learn_pb2.LearnResponse:
        model = self._engine.model(names.model_of(opening.model))
        hold, declared = model.writer.held.hold, model.spec.spec.int8_trunk
        wanted = declared.samples if declared is not None and model.ready_trunk.observes else 0
        return learn_pb2.LearnResponse(
            opened=learn_pb2.Opened(
                epoch=stream.epoch,
                durable_sequence=stream.durable_sequence,
                timeline=self._engine.timeline,
                credits=CREDITS,
                input=input_contract(model),
                held_sequence=stream.held_sequence,
                min_samples=hold.samples if hold is not None else wanted,
                min_clients=hold.clients if hold is not None else 0,
                heartbeat_bytes=self._heartbeat_bytes,
            )
        )

    def _durable(self, event: DurableUpTo) -> learn_pb2.LearnResponse:
        return learn_pb2.LearnResponse(
            durable=learn_pb2.Durable(
                sequence=event.sequence,
                commit_id=event.commit_id,
                timeline=self._engine.timeline,
                version=event.version,
            )
        )


async def _read(requests: AsyncIterator[bytes], stream: LearnStream) -> None:
    """Feeds the stream; any error ends it, with its status."""
    try:
        async for data in requests:
            _take(data, stream)
            del data  # or the last batch stays for as long as nothing follows
        stream.finish()
    except asyncio.CancelledError:
        raise
    except Exception as error:
        stream.fail(error)


def _take(data: bytes, stream: LearnStream) -> None:
    message = wire.parse(learn_pb2.LearnRequest, data)
    match message.WhichOneof("request"):
        case "batch":
            stream.accept(_batch(message.batch), data)
        case "heartbeat":
            pass  # to be read was all that it was for
        case _:
            raise InvalidError("after `open` a stream carries `batch` and `heartbeat` only", field="batch")


def _batch(batch: learn_pb2.Batch) -> LearnBatch:
    """A batch whose samples cannot be understood is refused in its turn, and spends its sequence."""
    if batch.sequence == 0:
        raise InvalidError("sequences begin with 1", field="batch.sequence")
    try:
        truth = truth_of(batch)
        if batch.step and not names.NAME_PATTERN.fullmatch(batch.step):
            raise InputError(names.unlike(batch.step, NAME), field="batch.step")
        if not batch.HasField("samples") and not len(truth):
            return LearnBatch(sequence=batch.sequence, labels=(), samples=_EMPTY)
        return LearnBatch(
            sequence=batch.sequence,
            labels=truth,
            samples=learned_of(batch.samples, field="batch.samples"),
            step=batch.step,
        )
    except InputError as error:
        return LearnBatch(sequence=batch.sequence, labels=tuple(batch.labels), samples=None, refusal=error)


def _received(event: Received) -> learn_pb2.LearnResponse:
    outcome = event.outcome
    if outcome.refusal is not None:
        return _rejected(outcome.sequence, outcome.refusal)
    accuracy = outcome.total_correct / outcome.tested if outcome.tested else 0.0
    return learn_pb2.LearnResponse(
        received=learn_pb2.Received(
            sequence=outcome.sequence,
            samples=outcome.samples,
            correct=outcome.correct,
            prequential=models_pb2.Prequential(
                tested=outcome.tested,
                correct=outcome.total_correct,
                accuracy=accuracy,
                windowed_accuracy=outcome.windowed_accuracy,
                window=outcome.window,
            ),
            classes_seen=outcome.classes_seen,
            regularization=outcome.regularization,
            times=learn_pb2.StageTimes(
                decode_ms=event.decode_ms,
                queue_ms=event.queue_ms,
                trunk_ms=event.trunk_ms,
                test_ms=outcome.test_ms,
                integrate_ms=outcome.integrate_ms,
            ),
            tested_by_version=outcome.tested_by_version,
            credits=CREDITS,
            duplicate=outcome.duplicate,
            receipt=outcome.receipt,
        )
    )


def _rejected(sequence: int, refusal: EverlearnError) -> learn_pb2.LearnResponse:
    return learn_pb2.LearnResponse(
        rejected=learn_pb2.Rejected(
            sequence=sequence,
            code=status_of(refusal).name,
            reason=refusal.reason,
            field=refusal.field,
            message=refusal.message,
            credits=CREDITS,
        )
    )
