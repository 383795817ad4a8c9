"""everlearn.v1.PredictService."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from functools import partial

import grpc
import numpy as np
import numpy.typing as npt

from everlearn.errors import EverlearnError, InputError
from everlearn.metrics.label_sets import THRESHOLD
from everlearn_protos.arrays import to_tensor
from everlearn_protos.v1 import predict_pb2
from everlearn_server.engine.serving import Scored, Serving, Snapshot
from everlearn_server.errors import status_of
from everlearn_server.rpc import names, wire
from everlearn_server.rpc.caller import client_of
from everlearn_server.rpc.samples import samples_of

MAX_SAMPLES = 1024
"""Samples in one request, as for learning."""
MAX_RANKED = 65_536
"""Labels with a score in one response, over all samples; each is made by Python."""
MAX_RESPONSE_BYTES = 4 * 2**20 - 65_536
"""gRPC clients refuse more than 4 MiB unless they are told otherwise; 1,024 ids of samples take 35 kB of that."""
_SCORES_ON_THE_LOOP, _RANKED_ON_THE_LOOP = 65_536, 1024
"""Scores that are ranked, and labels that are named, where everyone waits; more go to a thread."""


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
        labels = snapshot.head.labels
        task = snapshot.head.task
        if task == "regression" and request.top_k > 1:
            raise InputError("a regression has values, and no classes to rank; leave top_k out", field="top_k")
        # Of several labels without a number, all that a sample has: nobody knows how many before it is scored.
        present = task == "multilabel" and request.top_k == 0
        count = min(max(1, request.top_k), len(labels))
        _check_size(len(samples), count, labels, scores=request.scores or task == "regression")
        scored = await self._serving.score(snapshot, samples, timeout_s=context.time_remaining())
        if present:
            count = _most_present(scored.scores_BC)
        if scored.scores_BC.size <= _SCORES_ON_THE_LOOP and len(samples) * count <= _RANKED_ON_THE_LOOP:
            response = _response(request, snapshot, scored, count)
        else:
            response = await asyncio.to_thread(_response, request, snapshot, scored, count)
        # Last: what is refused does not wait.
        response.sample_ids.extend(await self._serving.keep(snapshot, scored, caller=partial(client_of, context)))
        return response

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


def best_of(scores_BC: npt.NDArray[np.float32], count: int) -> npt.NDArray[np.intp]:
    """Indices [B, count] of the best classes, best first; of equal scores the lower index comes first.

    >>> best_of(np.array([[1, 3, 2, 3]], np.float32), 3)
    array([[1, 3, 2]])
    """
    if count == 1:
        best_B: npt.NDArray[np.intp] = scores_BC.argmax(axis=1)
        return best_B[:, None]
    classes = scores_BC.shape[1]
    if count > classes // 8:
        order_BC: npt.NDArray[np.intp] = np.argsort(-scores_BC, axis=1, kind="stable")
        return order_BC[:, :count]
    least_B = np.partition(scores_BC, classes - count, axis=1)[:, classes - count]
    best_Bk = np.empty((len(scores_BC), count), np.intp)
    for row, (scores_C, least) in enumerate(zip(scores_BC, least_B, strict=True)):
        candidates = np.flatnonzero(scores_C >= least)  # more than `count` where scores are equal
        best_Bk[row] = candidates[np.argsort(-scores_C[candidates], kind="stable")[:count]]
    return best_Bk


def _check_size(samples: int, count: int, labels: tuple[str, ...], *, scores: bool) -> None:
    """Refuses what would hold up everyone or be refused by the caller's own gRPC, before any work is done."""
    if samples > MAX_SAMPLES:
        raise InputError(f"{samples} samples; send {MAX_SAMPLES} a request at most", field="samples")
    if samples * count > MAX_RANKED:
        raise InputError(
            f"the {count} best classes of {samples} samples are more than {MAX_RANKED}; ask for fewer, or send fewer "
            "samples",
            field="top_k",
        )
    if scores and samples * len(labels) * 4 > MAX_RESPONSE_BYTES:
        raise InputError(
            f"scores of {samples} samples and {len(labels)} classes are more than {MAX_RESPONSE_BYTES} bytes; send "
            f"{MAX_RESPONSE_BYTES // (4 * len(labels))} samples at most",
            field="scores",
        )


def _response(
    request: predict_pb2.PredictRequest, snapshot: Snapshot, scored: Scored, count: int
) -> predict_pb2.PredictResponse:
    labels = snapshot.head.labels
    response = predict_pb2.PredictResponse(
        version=f"models/{snapshot.model}/versions/{snapshot.version}",
        queue_ms=scored.queue_ms,
        trunk_ms=scored.trunk_ms,
    )
    if snapshot.head.task == "regression":
        response.values.CopyFrom(to_tensor(scored.scores_BC))
        response.labels.extend(labels)
    else:
        least = THRESHOLD if snapshot.head.task == "multilabel" and request.top_k == 0 else -np.inf
        _rank(response, scored.scores_BC, labels, count, least)
    if scored.novelty_B is not None:
        response.novelty.extend(scored.novelty_B.tolist())
    if request.scores:
        response.scores.CopyFrom(to_tensor(scored.scores_BC))
        if not response.labels:
            response.labels.extend(labels)
    size = response.ByteSize()
    if size > MAX_RESPONSE_BYTES:
        raise InputError(
            f"the response has {size} bytes, more than {MAX_RESPONSE_BYTES}; ask for fewer classes or samples",
            field="scores" if request.scores else "top_k",
        )
    return response


def _most_present(scores_BC: npt.NDArray[np.float32]) -> int:
    """Labels of the sample that has most of them. Raises InputError where naming them all would hold up everyone."""
    present_B = (scores_BC >= THRESHOLD).sum(axis=1)
    if int(present_B.sum()) > MAX_RANKED:
        raise InputError(f"the samples have more than {MAX_RANKED} labels; send fewer samples", field="samples")
    return max(1, int(present_B.max(initial=0)))


def _rank(
    response: predict_pb2.PredictResponse,
    scores_BC: npt.NDArray[np.float32],
    labels: tuple[str, ...],
    count: int,
    least: float,
) -> None:
    """The best classes of each sample, of those that have at least the score `least`."""
    best_Bk = best_of(scores_BC, count)
    best = np.take_along_axis(scores_BC, best_Bk, axis=1).tolist()
    for indices_k, scores_k in zip(best_Bk.tolist(), best, strict=True):
        top = response.predictions.add().top
        for index, score in zip(indices_k, scores_k, strict=True):
            if score < least:
                break
            top.add(label=labels[index], index=index, score=score)
