"""What an operator reads: logs without payloads or names, and metrics that are right and always answer."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from everlearn.errors import NotFoundError
from everlearn_server.telemetry import Metrics, MetricsInterceptor, ModelReading

PROGRAM = """
import asyncio, logging, sys, structlog
from everlearn_server.telemetry import configure_logging

configure_logging("info", json=sys.argv[1] == "json")
log = structlog.get_logger()

def inner(labels):
    features = [labels]
    raise ValueError(f"of {labels}")

def outer():
    try:
        inner("top-secret")
    except ValueError as error:
        raise KeyError("top-secret") from error

try:
    outer()
except KeyError as error:
    log.exception("raised", model="m")
    log.critical("given", exc_info=error)
    logging.getLogger("some.library").error("theirs\\nof top-secret", exc_info=True)

async def lost():
    await asyncio.wait([asyncio.ensure_future(asyncio.to_thread(inner, "top-secret"))])  # nobody asks how it ended

asyncio.run(lost())
"""


def logged(form: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, form], capture_output=True, text=True, check=True, timeout=240
    )
    assert done.stdout == ""
    assert "top-secret" not in done.stderr
    return done.stderr.splitlines()


def test_an_error_is_logged_as_its_kind_and_its_stack_never_with_values() -> None:
    events = [json.loads(line) for line in logged("json")]
    assert [event["event"] for event in events] == [
        "raised",
        "given",
        "theirs",
        "Task exception was never retrieved",
    ]
    for event in events[:3]:
        assert event["kind"] == "KeyError from ValueError"
        functions = [frame.rpartition(" ")[2] for frame in event["frames"]]
        assert functions == ["<module>", "outer", "outer", "inner"]
    assert events[3]["logger"] == "asyncio"


def test_logs_for_people_hold_no_values_either() -> None:
    lines = logged("console")
    assert len(lines) == 4
    assert "KeyError from ValueError" in lines[0]
    assert "inner" in lines[0]


async def call(metrics: Metrics, error: BaseException | None, *, code: Any = None, left_s: float | None = None) -> None:
    async def behaviour(request: bytes, context: Any) -> bytes:
        if error is not None:
            raise error
        return b""

    async def handler(details: Any) -> Any:
        return grpc.unary_unary_rpc_method_handler(behaviour)  # type: ignore[arg-type]  # aio takes a coroutine

    details = SimpleNamespace(method="/s/M")
    timed = await MetricsInterceptor(metrics).intercept_service(handler, details)
    context = SimpleNamespace(code=lambda: code, time_remaining=lambda: left_s)
    await asyncio.gather(timed.unary_unary(b"", context), return_exceptions=True)


@pytest.mark.parametrize(
    ("error", "code", "left_s", "name"),
    [
        (None, None, 1.0, "OK"),
        (grpc.aio.AbortError(), grpc.StatusCode.NOT_FOUND, 1.0, "NOT_FOUND"),
        (asyncio.CancelledError(), None, None, "CANCELLED"),
        (asyncio.CancelledError(), None, 1.0, "CANCELLED"),
        (asyncio.CancelledError(), None, 0.0, "DEADLINE_EXCEEDED"),
    ],
)
def test_a_call_is_counted_under_the_code_that_its_caller_sees(
    error: BaseException | None, code: Any, left_s: float | None, name: str
) -> None:
    metrics = Metrics()
    asyncio.run(call(metrics, error, code=code, left_s=left_s))
    labels = {"method": "/s/M", "code": name}
    assert metrics.registry.get_sample_value("everlearn_rpc_seconds_count", labels) == 1


def reading(name: str, samples: int) -> ModelReading:
    return ModelReading(
        name=name,
        samples=samples,
        classes=1,
        windowed_accuracy=0.5,
        latest_version=1,
        stable_version=1,
        commits=1,
        commit_s=0.1,
        saturated_values=0,
    )


def test_a_scrape_answers_while_models_come_and_go() -> None:
    looks = 0

    def read() -> Iterator[ModelReading]:
        nonlocal looks
        looks += 1
        yield reading("a", looks)
        if looks % 2 or looks > 2:
            raise NotFoundError("no model 'b'") if looks == 1 else RuntimeError("dictionary changed size")
        yield reading("b", looks)

    metrics = Metrics()
    metrics.watch_models(read)
    looks = 0
    samples = metrics.registry.get_sample_value
    assert samples("everlearn_model_samples", {"model": "b"}) == 2  # the second look
    assert samples("everlearn_model_samples", {"model": "b"}) == 2  # no look was whole: what was known
    assert looks == 5
