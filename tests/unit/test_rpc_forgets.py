"""A refused request is gone from memory at once, without the garbage collector's help."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from typing import Any

import grpc
import pytest

from everlearn.errors import InvalidError
from everlearn_protos.v1 import models_pb2
from everlearn_server.rpc import wire
from everlearn_server.telemetry import Metrics, MetricsInterceptor

MARKER = "a payload that nobody may keep"
Request = models_pb2.GetModelRequest


async def refuse(request: Any, _: wire.Context) -> Any:
    if request.name:
        raise InvalidError("refused", field="name")
    return models_pb2.Model()


async def break_down(request: Any, _: wire.Context) -> Any:
    raise RuntimeError(f"a bug with {request.name[:3]}")


async def refuse_in_stream(requests: AsyncIterator[bytes], context: wire.Context) -> AsyncGenerator[Any, None]:
    async for data in requests:
        yield await refuse(wire.parse(Request, data), context)


async def refuse_responses(request: Any, context: wire.Context) -> AsyncGenerator[Any, None]:
    yield await refuse(request, context)


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def remnants() -> list[str]:
    """Requests that are still there, and calls that still hold their bytes."""
    found = [f"a request: {each.name[:20]}" for each in gc.get_objects() if isinstance(each, Request) and each.name]
    for error in gc.get_objects():
        if not isinstance(error, BaseException):
            continue
        trace = error.__traceback__
        while trace is not None:
            for name, value in trace.tb_frame.f_locals.items():
                if isinstance(value, bytes) and MARKER.encode() in value:
                    found.append(f"{name} in {trace.tb_frame.f_code.co_qualname} of a {type(error).__name__}")
            trace = trace.tb_next
    return found


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("method", ["Refuse", "Break", "Stream", "Responses"])
def test_a_refused_request_is_not_kept(method: str) -> None:
    async def call() -> list[str]:
        server = grpc.aio.server(interceptors=[MetricsInterceptor(Metrics())])
        methods = {
            "Refuse": wire.unary(Request, refuse),
            "Break": wire.unary(Request, break_down),
            "Stream": wire.bidirectional(refuse_in_stream),
            "Responses": wire.server_stream(Request, refuse_responses),
        }
        server.add_generic_rpc_handlers((wire.service("test.Service", methods),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            for _ in range(3):
                data = Request(name=MARKER).SerializeToString()
                with pytest.raises(grpc.RpcError):
                    await _called(channel, f"/test.Service/{method}", data)
                del data
            for _ in range(600):  # until the last call is put away, which takes no collector, but its turn
                await asyncio.sleep(0.05)
                if not (left := remnants()):
                    break
        await server.stop(0)
        del server
        for _ in range(2):  # while its loop still runs
            gc.collect()
            await asyncio.sleep(0.02)
        return left

    assert asyncio.run(call()) == []


async def _called(channel: grpc.aio.Channel, path: str, data: bytes) -> None:
    if path.endswith("Stream"):
        async for _ in channel.stream_stream(path)(iter([data])):
            pass
        return
    if path.endswith("Responses"):
        async for _ in channel.unary_stream(path)(data):
            pass
        return
    await channel.unary_unary(path)(data)
