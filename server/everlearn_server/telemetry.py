"""Logs as events with fields, and Prometheus metrics. Never a payload, a label or a client's name."""

from __future__ import annotations

import inspect
import logging
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any, cast

import grpc
import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)


def configure_logging(level: str, *, json: bool) -> None:
    """Called once by the command; libraries never configure logging."""
    renderer: Any = structlog.processors.JSONRenderer() if json else structlog.dev.ConsoleRenderer(colors=False)
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )


class Metrics:
    """All metrics of one server, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.rpc_seconds = Histogram(
            "everlearn_rpc_seconds", "Time to answer a call", ["method", "code"], registry=self.registry,
            buckets=_BUCKETS_S,
        )  # fmt: skip
        self.streams = Gauge("everlearn_streams", "Open streams", ["method"], registry=self.registry)
        self.learned_samples = Counter(
            "everlearn_learned_samples", "Samples added to a memory", ["model"], registry=self.registry
        )
        self.waiting_images = Gauge(
            "everlearn_waiting_images", "Images in the queue, by lane", ["lane"], registry=self.registry
        )
        self.models = Gauge("everlearn_models", "Declared models", registry=self.registry)

    def watch_queue(self, depth: Callable[[], tuple[int, int]]) -> None:
        """Reads the queue's depth when scraped."""
        self.waiting_images.labels("predict").set_function(lambda: depth()[0])
        self.waiting_images.labels("learn").set_function(lambda: depth()[1])

    def serve(self, listen: str) -> Callable[[], None]:
        """Answers /metrics on a thread; returns what stops it."""
        host, _, port = listen.rpartition(":")
        server, thread = start_http_server(int(port), addr=host, registry=self.registry)

        def stop() -> None:
            server.shutdown()
            server.server_close()
            thread.join()

        return stop


class MetricsInterceptor(grpc.aio.ServerInterceptor):
    """Times unary calls and counts open streams."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: Any) -> Any:
        """Wraps the handler that answers the call."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        method = handler_call_details.method
        if handler.request_streaming or handler.response_streaming:
            return _stream(handler, self._metrics.streams.labels(method))
        return _unary(handler, method, self._metrics.rpc_seconds)


def _unary(handler: Any, method: str, seconds: Histogram) -> Any:
    behaviour = handler.unary_unary

    async def timed(request: Any, context: Any) -> Any:
        begun_s = time.perf_counter()
        try:
            return await behaviour(request, context)
        finally:
            code = context.code()
            name = getattr(code, "name", None) or ("OK" if not code else str(code))
            seconds.labels(method, name).observe(time.perf_counter() - begun_s)

    return grpc.unary_unary_rpc_method_handler(timed, handler.request_deserializer, handler.response_serializer)


def _stream(handler: Any, open_streams: Gauge) -> Any:
    def counted(behaviour: Any) -> Any:
        async def call(request: Any, context: Any) -> None:
            open_streams.inc()
            try:
                await behaviour(request, context)
            finally:
                open_streams.dec()

        return call

    # Ours write through the context; others (health's Watch, reflection) are generators and pass uncounted.
    kind = "stream_stream" if handler.request_streaming else "unary_stream"
    behaviour = getattr(handler, kind)
    if behaviour is None or not _is_coroutine(behaviour):
        return handler
    make = cast(Any, getattr(grpc, f"{kind}_rpc_method_handler"))
    return make(counted(behaviour), handler.request_deserializer, handler.response_serializer)


def _is_coroutine(behaviour: Any) -> bool:
    return inspect.iscoroutinefunction(behaviour)
