"""Health and reflection, as grpcio's packages have them, behind our own way in: their generated handlers would answer a
message that is none with INTERNAL, and parse whatever it holds."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import grpc
from google.protobuf.message import Message
from grpc_health.v1 import health, health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from everlearn.errors import InvalidError
from everlearn_server.rpc import wire
from everlearn_server.rpc.oip_reflection import reflection_pool


def health_handler(servicer: health.aio.HealthServicer) -> grpc.GenericRpcHandler:
    """grpc.health.v1.Health."""
    kind = health_pb2.HealthCheckRequest
    methods = {"Check": wire.unary(kind, servicer.Check), "Watch": wire.writing_stream(kind, servicer.Watch)}
    return wire.service(health.SERVICE_NAME, methods)


def reflection_handler(service_names: tuple[str, ...]) -> grpc.GenericRpcHandler:
    """grpc.reflection.v1alpha.ServerReflection over the named services."""
    servicer = reflection.aio.ReflectionServicer(service_names, pool=reflection_pool(service_names))

    async def told(requests: AsyncIterator[bytes], context: wire.Context) -> AsyncGenerator[Message, None]:
        async for response in servicer.ServerReflectionInfo(_parsed(requests), context):
            yield response

    return wire.service(reflection.SERVICE_NAME, {"ServerReflectionInfo": wire.bidirectional(told)})


async def _parsed(requests: AsyncIterator[bytes]) -> AsyncGenerator[Any, None]:
    async for data in requests:
        request = wire.parse(reflection_pb2.ServerReflectionRequest, data)
        extension = request.file_containing_extension.extension_number
        if not 0 <= extension < 2**29:  # the pool raises what no caller of it expects
            raise InvalidError(
                f"{extension} is no number of a field", field="file_containing_extension.extension_number"
            )
        yield request
