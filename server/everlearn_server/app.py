"""The only place that connects objects: store, engine, services, health, metrics; start, drain, stop."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable
from typing import Protocol

import grpc
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

import everlearn
from everlearn.errors import UnavailableError
from everlearn.hubs.base import HubSettings
from everlearn.learners.trainer import TrainerSettings
from everlearn.runtime.garbage import freeze_what_stays
from everlearn.runtime.malloc import tune_malloc
from everlearn.runtime.providers import providers_in_use
from everlearn_protos.oip import SERVICE
from everlearn_server.engine.engine import Engine, EngineSettings
from everlearn_server.engine.live_model import LiveModel
from everlearn_server.rpc.exports import ExportService
from everlearn_server.rpc.learn import LearnService
from everlearn_server.rpc.models import ModelService
from everlearn_server.rpc.oip import InferenceService
from everlearn_server.rpc.oip_reflection import reflection_pool
from everlearn_server.rpc.operations import OperationsService
from everlearn_server.rpc.predict import PredictService
from everlearn_server.rpc.server_info import ServerInfoService
from everlearn_server.rpc.wire import MAX_MESSAGE_BYTES
from everlearn_server.settings import Settings
from everlearn_server.store.store import Store
from everlearn_server.telemetry import Metrics, MetricsInterceptor, ModelReading

_logger = structlog.get_logger(__name__)
_OVERSIZE_BYTES = 4096
"""How far gRPC's own limit lies above ours, so that an oversized request gets our own, clearer answer."""


class _Service(Protocol):
    NAME: str

    def handler(self) -> grpc.GenericRpcHandler: ...


class Server:
    """One running service. `start` returns the port; `stop` drains."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._stop_metrics: Callable[[], None] | None = None

    async def start(self) -> int:
        """Opens the data folder, takes up every model, answers. Raises UnavailableError, DataLossError."""
        settings = self._settings
        tune_malloc()
        self._providers = await asyncio.to_thread(providers_in_use, settings.providers)
        self._store = Store.open(settings.data_dir)
        self._engine = Engine(self._store, _engine_settings(settings))
        self._health = health.aio.HealthServicer()
        self._engine.on_ready(self._tell_health)
        await self._engine.start()
        self._metrics = Metrics()
        self._metrics.watch_queue(lambda: self._engine.queue.depth)
        self._metrics.models.set_function(lambda: len(self._engine.models()))
        self._metrics.watch_models(self._read_models)
        self._grpc = grpc.aio.server(
            interceptors=[MetricsInterceptor(self._metrics)], options=_channel_options(settings)
        )
        self._inference = InferenceService(
            self._engine,
            server_name="everlearn",
            server_version=everlearn.__version__,
            max_message_bytes=settings.max_message_bytes,
            clock=time.time,
        )
        await self._register()
        port = self._bind()
        self._serve_metrics()
        freeze_what_stays()
        await self._grpc.start()
        self._announce(port)
        return port

    async def stop(self) -> None:
        """Health first, so that callers turn away; then running calls; then everything staged is committed."""
        await self._health.enter_graceful_shutdown()
        self._inference.drain()
        await self._engine.drain()
        await self._grpc.stop(self._settings.grace_s)
        await self._engine.close()
        self._store.close()
        if self._stop_metrics is not None:
            self._stop_metrics()
        if self._settings.ready_file is not None:
            self._settings.ready_file.unlink(missing_ok=True)

    async def _register(self) -> None:
        engine = self._engine
        services: list[_Service] = [
            ModelService(engine),
            LearnService(engine),
            PredictService(engine),
            ExportService(engine),
            OperationsService(engine),
            ServerInfoService(engine, providers=self._providers),
        ]
        names = [service.NAME for service in services]
        self._grpc.add_generic_rpc_handlers((*(service.handler() for service in services), self._inference.handler()))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._grpc)
        for name in ("", SERVICE, *names):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        # The inference protocol lives in a pool of its own; reflection answers from one that holds all.
        told = (*names, SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(told, self._grpc, pool=reflection_pool(told))

    def _bind(self) -> int:
        try:
            port = self._grpc.add_insecure_port(self._settings.listen)
        except RuntimeError as error:
            raise UnavailableError(f"cannot listen on {self._settings.listen}; is another server there?") from error
        if not port:
            raise UnavailableError(f"cannot listen on {self._settings.listen}; is another server there?")
        return port

    def _serve_metrics(self) -> None:
        listen = self._settings.metrics_listen
        if not listen:
            return
        try:
            self._stop_metrics = self._metrics.serve(listen)
        except OSError as error:
            raise UnavailableError(f"cannot serve metrics on {listen}: {error.strerror}") from error

    def _announce(self, port: int) -> None:
        host = self._settings.listen.rpartition(":")[0]
        address = f"{host}:{port}"
        _logger.info("listening", address=address, models=len(self._engine.models()))
        if self._settings.ready_file is not None:
            temporary = self._settings.ready_file.with_suffix(".tmp")
            temporary.write_text(json.dumps({"address": address, "pid": os.getpid()}))
            temporary.replace(self._settings.ready_file)

    def _read_models(self) -> list[ModelReading]:
        return [_reading(self._engine.model(name)) for name in self._engine.models()]

    def _tell_health(self, model: str, ready: bool) -> None:
        status = health_pb2.HealthCheckResponse
        value = status.SERVING if ready else status.NOT_SERVING
        self._health_task = asyncio.ensure_future(self._health.set(f"models/{model}", value))


def _reading(model: LiveModel) -> ModelReading:
    writer = model.writer if model.is_started else None
    commits, commit_s = writer.disk_share if writer else (0, 0.0)
    return ModelReading(
        name=model.name,
        samples=writer.learner.samples if writer else 0,
        classes=int((writer.learner.count_C > 0).sum()) if writer else 0,
        windowed_accuracy=writer.prequential.window_accuracy if writer else 0.0,
        latest_version=model.book.latest.record.number if model.book.latest else 0,
        stable_version=model.book.stable.record.number if model.book.stable else 0,
        commits=commits,
        commit_s=commit_s,
        saturated_values=writer.saturated_values if writer else 0,
    )


def _engine_settings(settings: Settings) -> EngineSettings:
    cache = settings.hub_cache or settings.data_dir / "hub"
    return EngineSettings(
        hubs=HubSettings(
            cache=cache, endpoint=settings.hub_endpoint, token=settings.hub_token, offline=settings.hub_offline
        ),
        work_dir=settings.data_dir / "work",
        providers=settings.providers,
        trainer=TrainerSettings(device=settings.device, visible_devices=settings.visible_devices),
        workers=settings.workers,
        queue_images=settings.queue_images,
        max_batch=settings.images_a_pass,
        commit_share=settings.commit_share,
    )


def _channel_options(settings: Settings) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", max(settings.max_message_bytes, MAX_MESSAGE_BYTES) + _OVERSIZE_BYTES),
        ("grpc.max_send_message_length", -1),
        ("grpc.so_reuseport", 0),  # on by default: a second server would silently share the port
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.http2.min_ping_interval_without_data_ms", 30_000),
        ("grpc.max_metadata_size", 8192),
        ("grpc.server_handshake_timeout_ms", 3000),
    ]
