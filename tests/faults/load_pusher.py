"""A learner that heeds no credits, as a load has some: it is to be refused with a time to wait, and to lose nothing.

On gRPC's synchronous API: where a call ends while it writes, the asynchronous one loses the status that the server gave
(grpc/grpc#36066).
"""

from __future__ import annotations

import queue
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.rpc import error_details_pb2, status_pb2

from everlearn_protos.v1 import learn_pb2, learn_pb2_grpc

PUSHED = 64
"""Batches that are sent at once: four times as many as there are credits."""


@dataclass
class Pushed:
    """What became of it."""

    durable: int = 0
    sent: int = 0
    refused: int = 0
    """Times that the stream was ended with RESOURCE_EXHAUSTED and a time to wait."""
    errors: list[str] = field(default_factory=list)


def push(order: dict[str, Any], client: str, batches: Sequence[learn_pb2.Batch], end_s: float) -> Pushed:
    """Sends `PUSHED` batches at once, waits as it is told, and comes again with what is not durable, until the clock
    says `end_s`. Then it heeds its credits, so that all it ever sent is durable."""
    pushed = Pushed()
    with grpc.insecure_channel(order["address"], options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        stub: Any = learn_pb2_grpc.LearnServiceStub(channel)
        opening = learn_pb2.Open(model=f"models/{order['model']}", client=client, feature_digest=order["digest"])
        while not pushed.errors and (time.monotonic() < end_s or pushed.durable < pushed.sent):
            answers = queue.Queue[None]()
            heeds = time.monotonic() >= end_s
            try:
                for response in stub.Learn(_outgoing(opening, batches, pushed, answers, heeds=heeds)):
                    match response.WhichOneof("response"):
                        case "opened":
                            pushed.durable = response.opened.durable_sequence
                            answers.put(None)
                        case "durable":
                            pushed.durable = response.durable.sequence
                        case _:
                            answers.put(None)
            except grpc.RpcError as error:
                _wait(error, pushed)
    return pushed


def _outgoing(
    opening: learn_pb2.Open,
    batches: Sequence[learn_pb2.Batch],
    pushed: Pushed,
    answers: queue.Queue[None],
    *,
    heeds: bool,
) -> Iterator[learn_pb2.LearnRequest]:
    yield learn_pb2.LearnRequest(open=opening)
    answers.get()  # opened
    first = pushed.durable + 1
    for sequence in range(first, pushed.sent + 1 if heeds else first + PUSHED):
        batch = batches[sequence % len(batches)]
        batch.sequence = sequence
        pushed.sent = max(pushed.sent, sequence)
        yield learn_pb2.LearnRequest(batch=batch)
        if heeds:
            answers.get()


def _wait(error: Any, pushed: Pushed) -> None:
    if error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED:
        details = dict(error.trailing_metadata())["grpc-status-details-bin"]
        delay = error_details_pb2.RetryInfo()
        if any(part.Unpack(delay) for part in status_pb2.Status.FromString(details).details):
            pushed.refused += 1
            time.sleep(delay.retry_delay.ToNanoseconds() / 1e9)
            return
    pushed.errors.append(f"{error.code().name}: {error.details()}")
