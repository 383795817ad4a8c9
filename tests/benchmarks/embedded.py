"""The engine without its wire, in this process: for what only its own objects can tell (disk time, one assignment)."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import json
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from everlearn.hubs.base import HubSettings
from everlearn.inputs.samples import Features
from everlearn.runtime.garbage import freeze_what_stays
from everlearn.values import FeaturesBd
from everlearn_server.engine.engine import Engine, EngineSettings
from everlearn_server.engine.learning import CREDITS, LearnBatch, LearnStream
from everlearn_server.engine.live_model import LiveModel
from everlearn_server.engine.outbox import DurableUpTo
from everlearn_server.store.store import Store

SIDE = 16


@asynccontextmanager
async def engine(folder: Path, declaration: str, *, workers: int = 2) -> AsyncIterator[tuple[Engine, LiveModel]]:
    """A running engine with one model, declared and ready."""
    store = Store.open(folder / "data")
    running = Engine(
        store,
        EngineSettings(hubs=HubSettings(cache=folder / "hub"), work_dir=folder / "work", workers=workers),
    )
    try:
        await running.start()
        _, operation = await running.declarations.apply(declaration)
        assert operation is not None
        while not operation.done:
            await asyncio.sleep(0.05)
        if operation.error is not None:
            raise RuntimeError(f"the model is not ready: {operation.error}")
        freeze_what_stays()  # as the server does
        yield running, running.model(running.models()[0])
    finally:
        gc.unfreeze()
        await running.close()
        store.close()


LabelledFeatures = tuple[FeaturesBd, tuple[str, ...]]


async def learn(engine: Engine, model: LiveModel, batches: Iterable[LabelledFeatures], *, client: str = "bench") -> int:
    """Streams features as a client would, as fast as credits allow, until all are durable; says how many batches."""
    stream = LearnStream(model, engine.queue, client=client, feature_digest=model.ready_trunk.feature_digest)
    await stream.open(epoch=0, timeline="", present_timeline=engine.timeline)
    first = stream.durable_sequence + 1
    credits = asyncio.Semaphore(CREDITS)

    async def send() -> int:
        sequence = first - 1
        for sequence, (features_Bd, labels) in enumerate(batches, first):
            await credits.acquire()
            stream.accept(LearnBatch(sequence=sequence, labels=labels, samples=Features(features_Bd)))
        stream.finish()
        return sequence + 1 - first

    sending = asyncio.create_task(send())
    async for event in stream.events():
        if not isinstance(event, DurableUpTo):
            credits.release()
    await stream.close()
    return await sending


def tiny_declaration(folder: Path, name: str, dim: int, **more: Any) -> str:
    """A model on a trunk of one convolution, for streams that bring their own features; `more`: of its spec."""
    weight = np.random.default_rng(0).normal(0, 0.2, (dim, 3, 3, 3)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["pixels", "weight"], ["low"], strides=[4, 4]),
            helper.make_node("Relu", ["low"], ["active"]),
            helper.make_node("GlobalAveragePool", ["active"], ["pooled"]),
            helper.make_node("Flatten", ["pooled"], ["features"]),
        ],
        "tiny",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["N", 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["N", dim])],
        [numpy_helper.from_array(weight, "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    data: bytes = model.SerializeToString()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"tiny-{dim}.onnx"
    path.write_bytes(data)
    return json.dumps(
        {
            "apiVersion": "everlearn/v1",
            "kind": "Model",
            "metadata": {"name": name},
            "spec": {
                "backbone": {
                    "source": f"folder:{path}",
                    "format": "onnx",
                    "sha256": hashlib.sha256(data).hexdigest(),
                    "loader": "onnx",
                },
                "input": {"size": SIDE, "resize": "squash"},
                **more,
            },
        }
    )
