"""Logs as events with fields, and Prometheus metrics. Never a payload, a label or a client's name."""

from __future__ import annotations

import asyncio
import inspect
import logging
import sys
import time
import traceback
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any, cast

import grpc
import structlog
from prometheus_client import CollectorRegistry, Gauge, Histogram, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from everlearn.errors import EverlearnError

_logger = structlog.get_logger(__name__)
_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
_CAUSES = 5
"""Errors of a chain that are logged."""
_READINGS = 3
"""Times a scrape reads the models while the event loop changes them."""


def configure_logging(level: str, *, json: bool) -> None:
    """Called once by the command; libraries never configure logging."""
    renderer: Any = structlog.processors.JSONRenderer() if json else structlog.dev.ConsoleRenderer(colors=False)
    structlog.configure(
        processors=[
            _without_values,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(level=logging.WARNING, handlers=[_Forward()], force=True)


class _Forward(logging.Handler):
    """Brings what libraries log (asyncio, gRPC) into our form."""

    def emit(self, record: logging.LogRecord) -> None:
        """With an error, only the first line of the text: the next ones show the error with its text."""
        text = record.getMessage()
        if record.exc_info:
            text = text.partition("\n")[0]
        structlog.get_logger().log(record.levelno, text, logger=record.name, exc_info=record.exc_info or None)


def _without_values(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """An error as its type and its stack: its text, and the values in its frames, may hold a payload or a name."""
    given = event.pop("exc_info", None)
    if given is True:
        given = sys.exc_info()
    error: BaseException | None = given[1] if isinstance(given, tuple) else given or None
    kinds: list[str] = []
    frames: list[str] = []
    while error is not None and len(kinds) < _CAUSES:
        kinds.append(type(error).__qualname__)
        stack = traceback.extract_tb(error.__traceback__)
        frames += [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in stack]
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if kinds:
        event["kind"], event["frames"] = " from ".join(kinds), frames
    return event


@dataclass(frozen=True, kw_only=True)
class ModelReading:
    """What is told of one model. Its name is an administrator's choice; no label or client name is ever told."""

    name: str
    samples: int
    classes: int
    windowed_accuracy: float
    latest_version: int
    stable_version: int
    commits: int
    commit_s: float
    saturated_values: int
    held_bytes: int = 0
    predictions_given: int = 0
    predictions_waiting: int = 0
    labels_joined: int = 0
    label_delay_median_s: float = 0.0
    label_delay_p90_s: float = 0.0
    canary_version: int = 0
    withdrawn_versions: int = 0
    devices: int = 0


class _Models(Collector):
    """Per-model metrics, made when asked for."""

    def __init__(self, read: Callable[[], Iterable[ModelReading]]) -> None:
        self._read = read
        self._last: list[ModelReading] = []

    def collect(self) -> Iterator[Metric]:
        """One family a figure."""
        readings = self._readings()
        for name, text, value in _FIGURES:
            kind = CounterMetricFamily if name in _COUNTERS else GaugeMetricFamily
            family = kind(f"everlearn_model_{name}", text, labels=["model"])
            for reading in readings:
                family.add_metric([reading.name], float(value(reading)))
            yield family

    def _readings(self) -> list[ModelReading]:
        """Models come and go on the event loop while this thread looks: then it looks again, or tells what it knows."""
        for _ in range(_READINGS):
            try:
                self._last = list(self._read())
                break
            except (EverlearnError, RuntimeError) as error:  # gone, stopped, or a dict that grew meanwhile
                _logger.debug("models changed during a scrape", exc_info=error)
        return self._last


class _Damages(Collector):
    """What was found damaged, while it is."""

    def __init__(self, read: Callable[[], Mapping[tuple[str, str], int]]) -> None:
        self._read = read

    def collect(self) -> Iterator[Metric]:
        """One family; no sample where all is intact."""
        family = GaugeMetricFamily("everlearn_data_loss", "Stored things that are damaged", labels=["model", "kind"])
        for (model, kind), count in sorted(self._read().items()):
            family.add_metric([model, kind], float(count))
        yield family


_FIGURES: tuple[tuple[str, str, Callable[[ModelReading], float]], ...] = (
    ("samples", "Samples in the memory", lambda reading: reading.samples),
    ("classes", "Classes with samples", lambda reading: reading.classes),
    ("windowed_accuracy", "Test-then-train accuracy, last window", lambda reading: reading.windowed_accuracy),
    ("latest_version", "Newest version", lambda reading: reading.latest_version),
    ("stable_version", "Version that serves by default", lambda reading: reading.stable_version),
    ("commits", "Group commits since the start", lambda reading: reading.commits),
    ("commit_seconds", "Time that commits took, of the disk and of the processor", lambda reading: reading.commit_s),
    ("saturated_values", "Feature values beyond the fixed-point scale", lambda reading: reading.saturated_values),
    ("held_bytes", "Of what was learned, in RAM, and may be set down", lambda reading: reading.held_bytes),
    ("late_predictions", "Predictions that waited for a label", lambda reading: reading.predictions_given),
    ("late_waiting", "Predictions that wait for a label", lambda reading: reading.predictions_waiting),
    ("late_labels", "Late labels learned", lambda reading: reading.labels_joined),
    ("late_delay_median_seconds", "From prediction to label", lambda reading: reading.label_delay_median_s),
    ("late_delay_p90_seconds", "From prediction to label, 90 %", lambda reading: reading.label_delay_p90_s),
    ("canary_version", "Version that chosen devices try, 0 for none", lambda reading: reading.canary_version),
    ("withdrawn_versions", "Versions that devices do not get any more", lambda reading: reading.withdrawn_versions),
    ("devices", "Devices that have checked in since the start", lambda reading: reading.devices),
)
_COUNTERS = frozenset({"commits", "commit_seconds", "saturated_values", "late_predictions", "late_labels"})


class Metrics:
    """All metrics of one server, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.rpc_seconds = Histogram(
            "everlearn_rpc_seconds", "Time to answer a call", ["method", "code"], registry=self.registry,
            buckets=_BUCKETS_S,
        )  # fmt: skip
        self.streams = Gauge("everlearn_streams", "Open streams", ["method"], registry=self.registry)
        self.waiting_images = Gauge(
            "everlearn_waiting_images", "Images in the queue, by lane", ["lane"], registry=self.registry
        )
        self.models = Gauge("everlearn_models", "Declared models", registry=self.registry)

    def watch_queue(self, depth: Callable[[], tuple[int, int]]) -> None:
        """Reads the queue's depth when scraped."""
        self.waiting_images.labels("predict").set_function(lambda: depth()[0])
        self.waiting_images.labels("learn").set_function(lambda: depth()[1])

    def watch_models(self, read: Callable[[], Iterable[ModelReading]]) -> None:
        """Reads every model when scraped; `read` is called on the scraper's thread and must only look."""
        self.registry.register(_Models(read))

    def watch_damages(self, read: Callable[[], Mapping[tuple[str, str], int]]) -> None:
        """Reads what is damaged, by (model, kind), when scraped."""
        self.registry.register(_Damages(read))

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
        name = ""
        answering = behaviour(request, context)
        del request  # gRPC keeps this frame for a while where the call fails
        try:
            return await answering
        except asyncio.CancelledError:  # gRPC cancels the handler for both
            left_s = context.time_remaining()
            name = "CANCELLED" if left_s is None or left_s > 0 else "DEADLINE_EXCEEDED"
            raise
        finally:
            name = name or _code_name(context.code())
            seconds.labels(method, name).observe(time.perf_counter() - begun_s)

    return grpc.unary_unary_rpc_method_handler(timed, handler.request_deserializer, handler.response_serializer)


def _code_name(code: Any) -> str:
    """Of a StatusCode, of a number, or of none, which is how a handler says that all went well."""
    return getattr(code, "name", None) or ("OK" if not code else str(code))


def _stream(handler: Any, open_streams: Gauge) -> Any:
    def counted(behaviour: Any) -> Any:
        async def call(request: Any, context: Any) -> None:
            open_streams.inc()
            answering = behaviour(request, context)
            del request  # as above
            try:
                await answering
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
