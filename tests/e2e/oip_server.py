"""A real grpc.aio server with the inference service on a free port, over a small real classifier of mean colours."""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import grpc
import numpy as np
import numpy.typing as npt
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from PIL import Image

from everlearn.errors import ExpiredError, InputError, NotFoundError, OverloadedError, PreconditionError
from everlearn.inputs.samples import EncodedImages, Features, Images, Pixels, Samples
from everlearn.spec.input import Input
from everlearn.values import FrontConfig, LinearHead
from everlearn_protos.oip import SERVICE
from everlearn_server.engine.serving import Scored, Snapshot
from everlearn_server.rpc.oip import InferenceService
from everlearn_server.rpc.oip_reflection import reflection_pool

SIDE = 4
LABELS = ("red", "grün", "blue")
MAX_MESSAGE_BYTES = 1 << 20
REFLECTION = "grpc.reflection.v1alpha.ServerReflection"


@dataclass
class MeanColour:
    """The trunk: the mean of each channel over all pixels."""

    digest: str = "0" * 64
    feature_dim: int = 3


@dataclass
class ColourServing:
    """`colours` has versions 1 and 2 (stable: 2) and scores a colour by its own channel; `asleep` is never ready."""

    unloaded: bool = False
    full: bool = False
    wait_s: float = 0.0
    crash: Exception | None = None
    timeouts_s: list[float | None] = field(default_factory=list)
    seen: list[Samples] = field(default_factory=list)

    def models(self) -> list[str]:
        return ["asleep", "colours"]

    def snapshot(self, model: str, version: str = "") -> Snapshot:
        if model == "asleep":
            raise PreconditionError("model 'asleep' has learned nothing yet; learn first", reason="MODEL_NOT_READY")
        if model != "colours":
            raise NotFoundError(f"model '{model}' is not declared; there are: asleep, colours", field="model_name")
        if self.unloaded:
            raise PreconditionError("unloaded", reason="MODEL_NOT_READY")
        number = {"": 2, "stable": 2, "latest": 2, "1": 1, "2": 2}.get(version)
        if number is None:
            raise NotFoundError(f"model 'colours' has no version '{version}'; it has 1, 2", field="model_version")
        return Snapshot(
            model="colours",
            version=number,
            trunk=MeanColour(),
            front=FrontConfig(height=SIDE, width=SIDE),
            head=LinearHead(
                weight_dC=np.eye(3, dtype=np.float32) * number,
                bias_C=np.zeros(3, np.float32),
                normalise=False,
                labels=LABELS,
                regularization=0.0,
            ),
            input=Input(),
            feature_digest="f" * 64,
            create_time_s=0.0,
        )

    def versions(self, model: str) -> list[int]:
        self.snapshot(model)
        return [1, 2]

    async def score(self, snapshot: Snapshot, samples: Samples, *, timeout_s: float | None) -> Scored:
        self.timeouts_s.append(timeout_s)
        self.seen.append(samples)
        if self.crash is not None:
            raise self.crash
        if self.full:
            raise OverloadedError("the queue holds 8 requests, its limit; retry in 0.25 s", retry_after_s=0.25)
        if timeout_s is not None and timeout_s < self.wait_s:
            raise ExpiredError("the deadline passed while the request waited")
        await asyncio.sleep(self.wait_s)
        features_Bd = _features(samples)
        return Scored(
            scores_BC=snapshot.head.scores(features_Bd),
            features_Bd=features_Bd,
            decode_ms=1.0,
            queue_ms=2.0,
            trunk_ms=3.0,
            head_ms=0.5,
        )

    def load(self, model: str) -> None:
        if model not in self.models():
            raise NotFoundError(f"model '{model}' is not declared", field="model_name")
        self.unloaded = False

    def unload(self, model: str) -> None:
        if model not in self.models():
            raise NotFoundError(f"model '{model}' is not declared", field="model_name")
        self.unloaded = True


def _features(samples: Samples) -> npt.NDArray[np.float32]:
    match samples:
        case EncodedImages(files):
            return np.stack([_decode(index, file) for index, file in enumerate(files)])
        case Images(images_BHWC):
            return images_BHWC.mean(axis=(1, 2), dtype=np.float32) / np.float32(255)
        case Pixels(pixels_BCHW):
            return pixels_BCHW.mean(axis=(2, 3), dtype=np.float32)
        case Features(features_Bd):
            return features_Bd


def _decode(index: int, file: bytes) -> npt.NDArray[np.float32]:
    try:
        image = np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))
    except Exception:
        raise InputError(
            "is not a readable image; send JPEG, PNG or WebP", field=f"samples.encoded_images.images[{index}]"
        ) from None
    return image.mean(axis=(0, 1), dtype=np.float32) / np.float32(255)


@dataclass
class Running:
    """A server that is running."""

    address: str
    serving: ColourServing
    service: InferenceService
    health: health.aio.HealthServicer


@contextmanager
def running_server() -> Iterator[Running]:
    """Runs the server on a loop and thread of its own, because tritonclient's calls block."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="oip-server")
    thread.start()
    server, running = asyncio.run_coroutine_threadsafe(_start(), loop).result(timeout=120)
    try:
        yield running
    finally:
        asyncio.run_coroutine_threadsafe(server.stop(0), loop).result(timeout=120)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _start() -> tuple[grpc.aio.Server, Running]:
    options = [("grpc.max_receive_message_length", MAX_MESSAGE_BYTES + 4096), ("grpc.so_reuseport", 0)]
    server = grpc.aio.server(options=options)
    serving = ColourServing()
    service = InferenceService(
        serving, server_name="everlearn", server_version="9.9", max_message_bytes=MAX_MESSAGE_BYTES, clock=lambda: 1e9
    )
    server.add_generic_rpc_handlers((service.handler(),))
    health_servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
    for name in ("", SERVICE):
        await health_servicer.set(name, health_pb2.HealthCheckResponse.SERVING)
    names = (SERVICE, health.SERVICE_NAME, REFLECTION)
    reflection.enable_server_reflection(names, server, pool=reflection_pool(names))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    return server, Running(f"127.0.0.1:{port}", serving, service, health_servicer)
