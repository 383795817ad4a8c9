"""The only place that connects objects: store, engine, services, health, metrics; start, drain, stop."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable, Mapping
from typing import Protocol

import grpc
import structlog
from google.protobuf.internal import api_implementation
from grpc_health.v1 import health, health_pb2
from grpc_reflection.v1alpha import reflection

import everlearn
from everlearn.errors import UnavailableError
from everlearn.hubs.base import HubSettings
from everlearn.learners.trainer import TrainerSettings
from everlearn.runtime.garbage import collect_what_was_left, freeze_what_stays
from everlearn.runtime.malloc import tune_malloc
from everlearn.runtime.providers import providers_in_use
from everlearn_protos.oip import SERVICE
from everlearn_server.engine.engine import Engine, EngineSettings
from everlearn_server.engine.live_model import LiveModel
from everlearn_server.rpc.admin import AdminService, AdminSocket
from everlearn_server.rpc.clients import ClientService
from everlearn_server.rpc.erasures import ErasureService
from everlearn_server.rpc.exports import ExportService
from everlearn_server.rpc.fleet import FleetService
from everlearn_server.rpc.learn import LearnService
from everlearn_server.rpc.models import ModelService
from everlearn_server.rpc.oip import InferenceService
from everlearn_server.rpc.operations import OperationsService
from everlearn_server.rpc.predict import PredictService
from everlearn_server.rpc.server_info import ServerInfoService
from everlearn_server.rpc.standard import health_handler, reflection_handler
from everlearn_server.rpc.wire import MAX_MESSAGE_BYTES
from everlearn_server.settings import Settings
from everlearn_server.store.store import Store
from everlearn_server.telemetry import Metrics, MetricsInterceptor, ModelReading

_logger = structlog.get_logger(__name__)
DATA = "data"
"""Name under which health tells whether all that is stored is intact, as far as it was met."""
_TIDY_S = 0.5
"""Half of the heartbeat after which no payload may be left in memory."""
_OVERSIZE_BYTES = 4096
"""How far gRPC's own limit lies above ours, so that an oversized request gets our own, clearer answer."""
KEEPALIVE = (
    ("grpc.keepalive_time_ms", 12_000),
    ("grpc.keepalive_timeout_ms", 8_000),
    ("grpc.http2.ping_timeout_ms", 8_000),  # of gRPC's other pings, behind which its keepalive's would wait
    # A learner that came back on another connection has ended the stream of this one: nobody would ping it again.
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
)
"""A connection whose other end is gone is closed within 30 s, and its learner's place is free."""


class _Service(Protocol):
    NAME: str

    def handler(self) -> grpc.GenericRpcHandler: ...


class Server:
    """One running service. `start` returns the port; `stop` drains."""

    def __init__(self, settings: Settings, *, protection: Mapping[str, str] | None = None) -> None:
        """`protection`: what keeps raw data from staying behind in this process, for whoever asks."""
        self._settings = settings
        self._protection = dict(protection or {})
        self._stop_metrics: Callable[[], None] | None = None
        self._telling: set[asyncio.Task[None]] = set()

    async def start(self) -> int:
        """Opens the data folder, takes up every model, answers. Raises UnavailableError, DataLossError."""
        settings = self._settings
        _refuse_slow_protobuf()
        tune_malloc()
        self._providers = await asyncio.to_thread(providers_in_use, settings.providers)
        self._store = Store.open(settings.data_dir, min_free_bytes=settings.min_free_bytes)
        self._engine = Engine(self._store, _engine_settings(settings))
        self._health = health.aio.HealthServicer()
        self._engine.on_ready(self._tell_health)
        self._tell_intact(True)
        self._engine.damages.changed = self._tell_intact
        await self._engine.start()
        self._metrics = Metrics()
        self._metrics.watch_queue(lambda: self._engine.queue.depth)
        self._metrics.models.set_function(lambda: len(self._engine.models()))
        self._metrics.watch_models(self._read_models)
        self._metrics.watch_damages(lambda: self._engine.damages.counts)
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
        await self._serve_admin()
        freeze_what_stays()
        await self._grpc.start()
        self._tidying = asyncio.create_task(_tidy(), name="tidy")
        self._announce(port)
        return port

    async def stop(self) -> None:
        """Health first, so that callers turn away; then running calls; then everything staged is committed."""
        await self._health.enter_graceful_shutdown()
        self._inference.drain()
        await self._admin.close()
        await self._admin_grpc.stop(None)
        self._admin_socket.close()
        await self._engine.drain()
        await self._grpc.stop(self._settings.grace_s)
        await self._engine.close()
        self._store.close()
        self._tidying.cancel()
        if self._stop_metrics is not None:
            self._stop_metrics()
        if self._settings.ready_file is not None:
            self._settings.ready_file.unlink(missing_ok=True)

    async def _register(self) -> None:
        engine = self._engine
        services: list[_Service] = [
            ModelService(engine),
            LearnService(engine, heartbeat_bytes=self._settings.heartbeat_bytes),
            PredictService(engine),
            ExportService(engine),
            ClientService(engine),
            ErasureService(engine),
            FleetService(engine),
            OperationsService(engine),
            ServerInfoService(engine, providers=self._providers, protection=self._protection),
        ]
        names = [service.NAME for service in services]
        # The inference protocol lives in a pool of its own; reflection answers from one that holds all.
        told = (*names, SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
        handlers = [service.handler() for service in services]
        handlers += [self._inference.handler(), health_handler(self._health), reflection_handler(told)]
        self._grpc.add_generic_rpc_handlers(tuple(handlers))
        for name in ("", SERVICE, *names):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)

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

    async def _serve_admin(self) -> None:
        """Apart from the port: what is asked there is for who may open the data folder."""
        self._admin = AdminService(self._store)
        self._admin_socket = AdminSocket(self._settings.data_dir)
        self._admin_grpc = grpc.aio.server()
        self._admin_grpc.add_generic_rpc_handlers((self._admin.handler(),))
        try:
            self._admin_socket.bind(self._admin_grpc)
        except (RuntimeError, OSError) as error:  # a file system without sockets: the rest works
            _logger.warning(
                "no socket in the data folder: a backup needs this server stopped", kind=type(error).__name__
            )
        await self._admin_grpc.start()

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
        self._set_health(f"models/{model}", ready)

    def _tell_intact(self, intact: bool) -> None:
        self._set_health(DATA, intact)

    def _set_health(self, name: str, good: bool) -> None:
        status = health_pb2.HealthCheckResponse
        telling = asyncio.ensure_future(self._health.set(name, status.SERVING if good else status.NOT_SERVING))
        self._telling.add(telling)
        telling.add_done_callback(self._telling.discard)


def _refuse_slow_protobuf() -> None:
    """The limits on messages are measured with upb; protobuf's Python backend takes many times its memory and time."""
    backend = api_implementation.Type()
    if backend != "upb":
        raise UnavailableError(
            f"protobuf runs on its {backend!r} backend; unset PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION, so that it is upb"
        )


async def _tidy() -> None:
    while True:
        await asyncio.sleep(_TIDY_S)
        collect_what_was_left()


def _reading(model: LiveModel) -> ModelReading:
    writer = model.writer if model.is_started else None
    shown = writer.held.shown if writer else None
    commits, commit_s = writer.disk_share if writer else (0, 0.0)
    room = writer.work.room if writer else None
    late = room.figures() if room is not None else None
    return ModelReading(
        name=model.name,
        samples=shown.samples if shown else 0,
        classes=int((shown.count_C > 0).sum()) if shown else 0,
        windowed_accuracy=shown.record.window_accuracy if shown else 0.0,
        latest_version=model.book.latest.record.number if model.book.latest else 0,
        stable_version=model.book.stable.record.number if model.book.stable else 0,
        commits=commits,
        commit_s=commit_s,
        saturated_values=writer.work.saturated_values if writer else 0,
        held_bytes=writer.learner.held_bytes if writer else 0,
        predictions_given=late.given if late else 0,
        predictions_waiting=late.waiting if late else 0,
        labels_joined=late.joined if late else 0,
        label_delay_median_s=(late.delay_median_s or 0.0) if late else 0.0,
        label_delay_p90_s=(late.delay_p90_s or 0.0) if late else 0.0,
        canary_version=model.rollout.state.canary,
        withdrawn_versions=len(model.rollout.state.withdrawn),
        devices=len(model.rollout.reports),
    )


def _engine_settings(settings: Settings) -> EngineSettings:
    cache = settings.hub_cache or settings.data_dir / "hub"
    return EngineSettings(
        hubs=HubSettings(
            cache=cache, endpoint=settings.hub_endpoint, token=settings.hub_token, offline=settings.hub_offline
        ),
        work_dir=settings.data_dir / "work",
        providers=settings.providers,
        trainer=TrainerSettings(
            device=settings.device, visible_devices=settings.visible_devices, library_path=settings.library_path
        ),
        workers=settings.workers,
        queue_images=settings.queue_images,
        max_batch=settings.images_a_pass,
        commit_share=settings.commit_share,
        working_set_bytes=settings.working_set_bytes,
        image_decoding=settings.image_decoding,
    )


def _channel_options(settings: Settings) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", max(settings.max_message_bytes, MAX_MESSAGE_BYTES) + _OVERSIZE_BYTES),
        ("grpc.max_send_message_length", -1),
        ("grpc.so_reuseport", 0),  # on by default: a second server would silently share the port
        *KEEPALIVE,
        ("grpc.max_metadata_size", 8192),
        # Once 1,000 calls wait to be taken up, gRPC drops some at random, whoever's: no connection may bring so many.
        ("grpc.max_concurrent_streams", 256),
        ("grpc.server_handshake_timeout_ms", 3000),
    ]
