"""Raw bytes in, messages out: handlers parse for themselves, so that a malformed message is answered, not leaked.

grpcio answers a message it cannot parse with INTERNAL or UNKNOWN (and its sync server leaks it); here it is
INVALID_ARGUMENT like every other bad value. `parse` is the only way in, of every method: `prescan` looks first.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, TypeVar, cast

import grpc
from google.protobuf.message import DecodeError, Message

from everlearn.errors import InvalidError, PayloadTooLargeError
from everlearn_server.rpc import prescan
from everlearn_server.rpc.status import answered, answered_stream

MAX_MESSAGE_BYTES = 4 * 2**20
"""Of a message of everlearn.v1: gRPC's own default, so that every client can send and receive what is allowed."""

M = TypeVar("M", bound=Message)
Context = grpc.aio.ServicerContext[Any, Any]
Unary = Callable[[Any, Context], Awaitable[Message]]
Stream = Callable[[Any, Context], AsyncGenerator[Message, None]]


def parse(kind: type[M], data: bytes, *, max_bytes: int = MAX_MESSAGE_BYTES) -> M:
    """Raises PayloadTooLargeError for what is beyond a limit, and InvalidError for bytes that are not such a message,
    each with the path of the field where it is so."""
    look(kind, data, max_bytes=max_bytes)
    return decode(kind, data, data)


def look(kind: Any, data: bytes, *, max_bytes: int = MAX_MESSAGE_BYTES) -> None:
    """The first half of `parse`: everything that can be refused before protobuf makes objects of it."""
    name = kind.DESCRIPTOR.full_name
    if len(data) > max_bytes:
        raise PayloadTooLargeError(
            f"the {name} has {len(data)} bytes; this server takes at most {max_bytes} in a message", field=name
        )
    prescan.check(data, kind)


def decode(kind: type[M], data: bytes, whole: bytes) -> M:
    """The second half of `parse`, of all or part of a message that was `look`ed at. Raises InvalidError."""
    try:
        return kind.FromString(data)
    except DecodeError:  # its text says no more; lengths were right, so it is text that is none, or a number too long
        path, name = prescan.path_of_bad_text(whole, kind), kind.DESCRIPTOR.full_name
        what = "protobuf cannot read it" if path == name else "text is not UTF-8"
        raise InvalidError(f"not a valid {name}: {what}; check the client's .proto", field=path) from None


def unary(kind: type[Message], behaviour: Unary) -> grpc.RpcMethodHandler[Any, Any]:
    """One request, one response."""

    async def call(data: bytes, context: Context) -> bytes:
        return (await behaviour(parse(kind, data), context)).SerializeToString()

    return grpc.unary_unary_rpc_method_handler(cast(Any, answered(call)))


def server_stream(kind: type[Message], behaviour: Stream) -> grpc.RpcMethodHandler[Any, Any]:
    """One request, many responses."""

    async def call(data: bytes, context: Context) -> None:
        async with aclosing(behaviour(parse(kind, data), context)) as responses:
            async for response in responses:
                await context.write(response.SerializeToString())

    return grpc.unary_stream_rpc_method_handler(cast(Any, answered(cast(Any, call))))


def writing_stream(
    kind: type[Message], behaviour: Callable[[Any, Any], Awaitable[None]]
) -> grpc.RpcMethodHandler[Any, Any]:
    """As `server_stream`, of a behaviour that writes messages to its context."""

    async def call(data: bytes, context: Context) -> None:
        await behaviour(parse(kind, data), _MessageWriter(context))

    return grpc.unary_stream_rpc_method_handler(cast(Any, answered(cast(Any, call))))


def bidirectional(behaviour: Stream) -> grpc.RpcMethodHandler[Any, Any]:
    """Many of both; the behaviour receives raw bytes, so that it can name the message that was malformed."""

    async def call(requests: AsyncIterator[bytes], context: Context) -> None:
        # Closed at once when the client is gone: its finally blocks must not wait for the garbage collector.
        async with aclosing(behaviour(requests, context)) as responses:
            async for response in responses:
                await context.write(response.SerializeToString())

    return grpc.stream_stream_rpc_method_handler(cast(Any, answered_stream(call)))


def service(name: str, methods: dict[str, grpc.RpcMethodHandler[Any, Any]]) -> grpc.GenericRpcHandler:
    """A handler to register; `name` is the full service name."""
    return grpc.method_handlers_generic_handler(name, methods)


class _MessageWriter:
    """What a servicer of grpcio's own writes to; our handlers write bytes."""

    def __init__(self, context: Context) -> None:
        self._context = context

    async def write(self, response: Message) -> None:
        await self._context.write(response.SerializeToString())
