"""Every error on its way out: one google.rpc.Status, the same for each service.

`details` carries the whole text with the field's path, because some clients (tritonclient) drop trailing metadata; the
rich details carry the same for programs: ErrorInfo always, BadRequest for a wrong field, RetryInfo for a full queue.
"""

from __future__ import annotations

import asyncio
import traceback
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import NoReturn, TypeVar

import grpc
import structlog
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from everlearn import errors as e
from everlearn_server.errors import status_of, without_frames

DOMAIN = "everlearn"
"""ErrorInfo.domain of every error."""
MAX_TEXT_BYTES = 1000
"""Status and trailing metadata share 8 KiB of HTTP/2 headers, in which a byte can take three."""
MAX_FIELD_BYTES = 200
"""The part of MAX_TEXT_BYTES that a field's path may take."""

_FIELDS: tuple[tuple[type[e.EverlearnError], str], ...] = (
    (e.SpecError, "declaration"),
    (e.BackboneError, "spec.backbone"),
    (e.HubError, "spec.backbone"),
)
"""Where an error is that is about the whole text, or about no file in particular."""

Request = TypeVar("Request")
Response = TypeVar("Response")
Context = grpc.aio.ServicerContext[Request, Response]

_log = structlog.get_logger(__name__)


def to_status(error: BaseException) -> status_pb2.Status:
    """The status an error is answered with.

    An error that was not raised on purpose becomes INTERNAL with an id; the log has its type and its stack under that
    id, and not its text, which may quote a payload.
    """
    if not isinstance(error, e.EverlearnError):
        return _internal(error)
    status = status_pb2.Status(code=status_of(error).value[0], message=text_of(error))
    field = error.field or next((path for kind, path in _FIELDS if isinstance(error, kind)), "")
    metadata = {"field": _cut(field, MAX_FIELD_BYTES)} if field else {}
    if isinstance(error, e.SequenceGapError):
        metadata["expected"] = str(error.expected)
    if isinstance(error, e.TimelineChangedError):
        metadata |= {"timeline": error.timeline, "durable": str(error.durable)}
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=metadata))
    if field and status_of(error) is grpc.StatusCode.INVALID_ARGUMENT:
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=metadata["field"], description=_cut(error.message, MAX_TEXT_BYTES)
        )
        status.details.add().Pack(error_details_pb2.BadRequest(field_violations=[violation]))
    if isinstance(error, e.OverloadedError):
        delay = Duration()
        delay.FromNanoseconds(round(max(error.retry_after_s, 0.0) * 1e9))
        status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    return status


def text_of(error: e.EverlearnError) -> str:
    """The message, led by the field's path where it does not name it itself; at most MAX_TEXT_BYTES.

    >>> text_of(e.InputError("has 3 axes; it must have 4", field="inputs[0].shape"))
    'inputs[0].shape: has 3 axes; it must have 4'
    """
    field = _cut(error.field, MAX_FIELD_BYTES)
    named = not field or error.message.startswith(field)
    return _cut(error.message if named else f"{field}: {error.message}", MAX_TEXT_BYTES)


def answered(
    behaviour: Callable[[Request, Context[Request, Response]], Awaitable[Response]],
) -> Callable[[Request, Context[Request, Response]], Awaitable[Response]]:
    """Wraps a handler with one request, so that whatever it raises is answered with `to_status`.

    gRPC keeps the error that ends a call in a cycle with its frames: none of them may hold the request, or the error
    that was raised, or a refused payload stays in memory until the garbage collector comes by.
    """

    async def call(request: Request, context: Context[Request, Response]) -> Response:
        answering = behaviour(request, context)
        del request
        try:
            return await answering
        except (asyncio.CancelledError, grpc.aio.AbortError):
            raise
        except Exception as error:
            refusal = [to_status(error)]
            without_frames(error)
        return await _abort(context, refusal)

    return call


def answered_stream(
    behaviour: Callable[[AsyncIterator[Request], Context[Request, Response]], Awaitable[None]],
) -> Callable[[AsyncIterator[Request], Context[Request, Response]], Awaitable[None]]:
    """Wraps a streaming handler that answers through `context.write`; as `answered`."""

    async def call(requests: AsyncIterator[Request], context: Context[Request, Response]) -> None:
        try:
            await behaviour(requests, context)
        except (asyncio.CancelledError, grpc.aio.AbortError):
            raise
        except Exception as error:
            refusal = [to_status(error)]
            without_frames(error)
        else:
            return
        await _abort(context, refusal)

    return call


async def _abort(context: Context[Request, Response], refusal: list[status_pb2.Status]) -> NoReturn:
    """Takes the status out of its list: gRPC keeps the error that this raises, with the frames that it passes, until
    the next call comes, and none of them may hold a text that names what was sent."""
    await context.abort_with_status(rpc_status.to_status(refusal.pop()))
    raise AssertionError("abort_with_status always raises")


def _internal(error: BaseException) -> status_pb2.Status:
    error_id = uuid.uuid4().hex[:12]
    frames = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(error.__traceback__)]
    _log.error("internal error", error_id=error_id, kind=type(error).__qualname__, frames=frames)
    status = status_pb2.Status(code=grpc.StatusCode.INTERNAL.value[0], message=f"internal error {error_id}")
    info = error_details_pb2.ErrorInfo(reason="INTERNAL", domain=DOMAIN, metadata={"error_id": error_id})
    status.details.add().Pack(info)
    return status


def _cut(text: str, limit: int) -> str:
    data = text.encode("utf-8", "replace")
    if len(data) <= limit:
        return text
    return data[: limit - 3].decode("utf-8", "ignore") + "..."
