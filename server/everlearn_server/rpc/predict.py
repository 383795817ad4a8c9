"""everlearn.v1.PredictService."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator

import grpc
import numpy as np

from everlearn.errors import EverlearnError
from everlearn_protos.arrays import to_tensor
from everlearn_protos.v1 import predict_pb2
from everlearn_server.engine.serving import Scored, Serving, Snapshot
from everlearn_server.errors import status_of
from everlearn_server.rpc import names, wire
from everlearn_server.rpc.samples import samples_of


class PredictService:
    """Translates; the engine scores."""

    NAME = "everlearn.v1.PredictService"

    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    def handler(self) -> grpc.GenericRpcHandler:
        """To register with the server."""
        return wire.service(
            self.NAME,
            {
                "Predict": wire.unary(predict_pb2.PredictRequest, self.predict),
                "PredictStream": wire.bidirectional(self.predict_stream),
            },
        )

    async def predict(self, request: predict_pb2.PredictRequest, context: wire.Context) -> predict_pb2.PredictResponse:
        """Best classes of each sample by the version that the name points at."""
        model, version = names.version_of(request.name)
        snapshot = self._serving.snapshot(model, version)
        samples = samples_of(request.samples, field="samples")
        scored = await self._serving.score(snapshot, samples, timeout_s=context.time_remaining())
        return _response(request, snapshot, scored)

    async def predict_stream(
        self, requests: AsyncIterator[bytes], context: wire.Context
    ) -> AsyncGenerator[predict_pb2.PredictStreamResponse, None]:
        """Each request is answered in order; its error is its own."""
        async for data in requests:
            try:
                request = wire.parse(predict_pb2.PredictRequest, data)
                response = await self.predict(request, context)
            except EverlearnError as error:
                yield predict_pb2.PredictStreamResponse(
                    error=predict_pb2.PredictError(code=status_of(error).name, field=error.field, message=error.message)
                )
            else:
                yield predict_pb2.PredictStreamResponse(response=response)


def _response(request: predict_pb2.PredictRequest, snapshot: Snapshot, scored: Scored) -> predict_pb2.PredictResponse:
    labels = snapshot.head.labels
    count = min(max(1, request.top_k), len(labels))
    best_Bk = np.argsort(-scored.scores_BC, axis=1, kind="stable")[:, :count]
    response = predict_pb2.PredictResponse(
        version=f"models/{snapshot.model}/versions/{snapshot.version}",
        queue_ms=scored.queue_ms,
        trunk_ms=scored.trunk_ms,
    )
    for row, best_k in enumerate(best_Bk):
        prediction = response.predictions.add()
        for index in best_k:
            prediction.top.add(label=labels[index], index=int(index), score=float(scored.scores_BC[row, index]))
    if request.scores:
        response.scores.CopyFrom(to_tensor(scored.scores_BC))
        response.labels.extend(labels)
    return response
