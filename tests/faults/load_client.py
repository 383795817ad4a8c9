"""Learners or askers of a load, in a process of their own: `python -m tests.faults.load_client` with JSON on stdin.

On bare asyncio stubs and messages made beforehand, so that the client is not what is measured. Prints `ready`, waits
for a line on stdin, works for `seconds`, then lets what is in flight become durable and prints one line of JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import deque
from dataclasses import asdict, dataclass, field
from typing import Any

import grpc
import numpy as np
from tests.faults.load_pusher import push

from everlearn_client.samples import Features, to_message
from everlearn_protos.v1 import learn_pb2, learn_pb2_grpc, predict_pb2, predict_pb2_grpc

BATCH = 16
CLASSES = 10
GIVE_UP_S = 240.0


@dataclass
class Told:
    """Of one stream."""

    client: str
    durable: int = 0
    """Batches, all of them."""
    in_time: int = 0
    """Of those, during the measured seconds."""
    rejected: int = 0
    refused: int = 0
    """Times that the stream was ended with RESOURCE_EXHAUSTED and a time to wait."""
    errors: list[str] = field(default_factory=list)
    latency_ms: list[float] = field(default_factory=list)
    """From sending a batch until it is durable, of those in time."""
    cpu_s: float = 0.0
    """Its share of what the process used, once all was ready."""


async def learn(channel: grpc.aio.Channel, order: dict[str, Any], client: str, told: Told, end: Ends) -> None:
    """One stream: as fast as credits and the window allow."""
    requests: asyncio.Queue[learn_pb2.LearnRequest | None] = asyncio.Queue()
    stub: Any = learn_pb2_grpc.LearnServiceStub(channel)
    opening = learn_pb2.Open(
        model=f"models/{order['model']}",
        client=client,
        feature_digest=order["digest"],
        durable_only=order["durable_only"],
    )
    requests.put_nowait(learn_pb2.LearnRequest(open=opening))
    batches, sent_s = _batches(order["dim"], seed=len(client)), deque[float]()
    state = {"sent": 0, "heard": 0, "credits": 0, "closed": 0}

    async def outgoing() -> Any:
        while (request := await requests.get()) is not None:
            yield request

    def pump() -> None:
        now_s = time.monotonic()
        while now_s < end.at_s and state["sent"] - state["heard"] < state["credits"] and len(sent_s) < order["window"]:
            state["sent"] += 1
            batch = batches[state["sent"] % len(batches)]
            batch.sequence = state["sent"]
            request = learn_pb2.LearnRequest()
            request.batch.CopyFrom(batch)
            requests.put_nowait(request)
            sent_s.append(now_s)
        if now_s >= end.at_s and not state["closed"]:
            state["closed"] = 1
            requests.put_nowait(None)

    call = stub.Learn(outgoing())
    try:
        async for response in call:
            match response.WhichOneof("response"):
                case "opened":
                    state["credits"] = response.opened.credits
                    await end.begin.wait()
                case "received":
                    state["heard"] += 1
                case "rejected":
                    state["heard"] += 1
                    told.rejected += 1
                case "durable":
                    now_s, fresh = time.monotonic(), response.durable.sequence - told.durable
                    waited = [(now_s - sent_s.popleft()) * 1e3 for _ in range(fresh)]
                    told.durable += fresh
                    if order["durable_only"]:  # else each was answered before
                        state["heard"] = told.durable
                    if now_s <= end.at_s:
                        told.in_time += fresh
                        told.latency_ms += waited
            pump()
    except grpc.aio.AioRpcError as error:
        told.errors.append(f"{error.code().name}: {error.details()}")
    if told.durable != state["sent"] and not told.errors:
        told.errors.append(f"{state['sent']} batches sent, {told.durable} durable")


async def pushing(order: dict[str, Any], told: Told, end: Ends) -> None:
    """A stream that heeds no credits (see `load_pusher`)."""
    await end.begin.wait()
    batches = _batches(order["dim"], seed=len(told.client))
    pushed = await asyncio.to_thread(push, order, told.client, batches, end.at_s)
    told.durable, told.refused, told.errors = pushed.durable, pushed.refused, pushed.errors


async def ask(channel: grpc.aio.Channel, order: dict[str, Any], told: Told, end: Ends) -> None:
    """Predictions at an even rate, none waiting for another."""
    stub: Any = predict_pb2_grpc.PredictServiceStub(channel)
    samples = to_message(Features(np.full((1, order["dim"]), 0.5, np.float32)))
    request = predict_pb2.PredictRequest(name=f"models/{order['model']}", samples=samples)
    running: set[asyncio.Task[None]] = set()
    await end.begin.wait()

    async def once() -> None:
        began_s = time.monotonic()
        try:
            await stub.Predict(request, timeout=GIVE_UP_S)
        except grpc.aio.AioRpcError as error:
            told.errors.append(f"{error.code().name}: {error.details()}")
        else:
            told.durable += 1
            told.latency_ms.append((time.monotonic() - began_s) * 1e3)

    began_s = time.monotonic()
    while time.monotonic() < end.at_s:
        due = int((time.monotonic() - began_s) * order["rate"]) - told.durable - len(running) - len(told.errors)
        for _ in range(due):
            task = asyncio.create_task(once())
            running.add(task)
            task.add_done_callback(running.discard)
        await asyncio.sleep(0.005)
    await asyncio.gather(*running)


class Ends:
    """When to begin and to end."""

    def __init__(self) -> None:
        self.begin = asyncio.Event()
        self.at_s = float("inf")

    def go(self, seconds: float) -> None:
        self.at_s = time.monotonic() + seconds
        self.begin.set()


async def run(order: dict[str, Any]) -> list[Told]:
    """All streams of this process."""
    told = [Told(client=client) for client in order["clients"]]
    end = Ends()
    async with grpc.aio.insecure_channel(order["address"], options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        if order["rate"]:
            tasks = [asyncio.create_task(ask(channel, order, told[0], end))]
        elif order["pushes"]:
            tasks = [asyncio.create_task(pushing(order, each, end)) for each in told]
        else:
            tasks = [asyncio.create_task(learn(channel, order, each.client, each, end)) for each in told]
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        await asyncio.to_thread(sys.stdin.readline)
        end.go(order["seconds"])
        began_s = time.process_time()
        await asyncio.wait_for(asyncio.gather(*tasks), order["seconds"] + GIVE_UP_S)
        for each in told:
            each.cpu_s = (time.process_time() - began_s) / len(told)
    return told


def _batches(dim: int, *, seed: int) -> list[learn_pb2.Batch]:
    random = np.random.default_rng(seed)
    made = []
    for index in range(16):
        labels = [(index + row) % CLASSES for row in range(BATCH)]
        centre_Bd = np.stack([np.random.default_rng(label).uniform(0, 1, dim) for label in labels])
        features_Bd = (centre_Bd + random.normal(0, 0.2, (BATCH, dim))).astype(np.float32)
        samples = to_message(Features(features_Bd))
        made.append(learn_pb2.Batch(labels=[str(label) for label in labels], samples=samples))
    return made


def main() -> None:
    """Reads the order, runs, tells."""
    order = json.loads(sys.stdin.readline())
    told = asyncio.run(run(order))
    sys.stdout.write(json.dumps([asdict(each) for each in told]) + "\n")


if __name__ == "__main__":
    main()
