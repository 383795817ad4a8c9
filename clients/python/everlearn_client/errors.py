"""Every error the client raises on purpose, as one tree that mirrors the server's statuses.

    EverlearnClientError
    +-- InvalidArgument        a value is wrong; `field` is its path
    +-- NotFound               no such model, version, export, operation
    +-- Conflict               your view is stale (etag, plan id), or it exists already
    |   +-- Fenced             a newer connection of the same learner took over
    |   +-- TimelineChanged    the server was restored from a backup: earlier acknowledgements are void
    +-- FailedPrecondition     right request, wrong state; `reason` is machine-readable
    |   +-- SequenceGap        a batch before this one is missing; `expected` is its sequence
    |   +-- Held               received and not durable: the model's privacy waits for more samples
    +-- AccessDenied           the server does not accept these credentials
    +-- Overloaded             the server is busy; retry after `retry_after_s`
    +-- DeadlineExceeded       no answer in time
    +-- SpoolFull              a device's spool takes no more (declared: `refuse`)
    +-- Unavailable            no server reached, or it is draining
    +-- DataLoss               stored or received bytes do not match their digest
    +-- ServerBug              an error that the server did not mean to raise

`from_rpc_error` builds them from the rich status (google.rpc.Status, AIP-193) that a gRPC error carries.
"""
# ruff: noqa: N818  # named after the gRPC status that they mirror, as the tree above reads

from __future__ import annotations

import dataclasses
from typing import Protocol

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

DOMAIN = "everlearn"
_DETAILS_KEY = "grpc-status-details-bin"


class EverlearnClientError(Exception):
    """Base of all deliberate errors. `field` is the path of the offending field, where there is one."""

    def __init__(self, message: str, *, field: str = "", reason: str = "", code: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.reason = reason
        """Machine-readable, e.g. `NEEDS_CONSENT`; empty where the server gave none."""
        self.code = code
        """Name of the gRPC status, e.g. `INVALID_ARGUMENT`; empty where the client itself refused."""


class InvalidArgument(EverlearnClientError):
    """A value is wrong."""


class NotFound(EverlearnClientError):
    """There is no such model, version, export or operation."""


class Conflict(EverlearnClientError):
    """The caller's view is stale: another etag or plan is current."""


class Fenced(Conflict):
    """A newer connection of the same learner exists; this one may not write any more."""


class TimelineChanged(Conflict):
    """The server's history is not the one that earlier acknowledgements come from: those above `durable_sequence` are
    void. Batches from the next one on are to be sent again, or are lost: call `learn` once more, on `timeline`."""

    def __init__(
        self,
        message: str,
        *,
        durable_sequence: int = 0,
        timeline: str = "",
        field: str = "",
        reason: str = "TIMELINE_CHANGED",
        code: str = "",
    ) -> None:
        super().__init__(message, field=field, reason=reason, code=code)
        self.durable_sequence = durable_sequence
        self.timeline = timeline


class FailedPrecondition(EverlearnClientError):
    """The request is right and the state is not."""


class SequenceGap(FailedPrecondition):
    """A batch before this one is missing; the server waits for `expected`."""

    def __init__(
        self, message: str, *, expected: int = 0, field: str = "", reason: str = "SEQUENCE_GAP", code: str = ""
    ) -> None:
        super().__init__(message, field=field, reason=reason, code=code)
        self.expected = expected


class Held(FailedPrecondition):
    """Batches were received and are not durable: the model's tier of privacy commits nothing until enough samples of
    enough clients have come. They are kept by the client that raised this, whose next `learn` sends them again first;
    who keeps them elsewhere does so until a report's `durable_sequence` covers them."""


class AccessDenied(EverlearnClientError):
    """The server does not accept these credentials, or they do not allow this."""


class Overloaded(EverlearnClientError):
    """The server is busy. `retry_after_s` is its advice in seconds, None where it gave none (retrying won't help)."""

    def __init__(
        self, message: str, *, retry_after_s: float | None = None, field: str = "", reason: str = "", code: str = ""
    ) -> None:
        super().__init__(message, field=field, reason=reason, code=code)
        self.retry_after_s = retry_after_s


class DeadlineExceeded(EverlearnClientError):
    """No answer within the time allowed."""


class SpoolFull(EverlearnClientError):
    """A device's spool is at its limit and was told to refuse. Once more is durable, it takes more."""


class Unavailable(EverlearnClientError):
    """No server was reached, the connection broke, or the server is draining. Trying again later may help."""


class DataLoss(EverlearnClientError):
    """Stored or received bytes do not match their digest."""


class ServerBug(EverlearnClientError):
    """The server failed in a way it did not mean to; its log says more."""


ERROR_OF_REASON: dict[str, type[EverlearnClientError]] = {
    "FENCED": Fenced,
    "TIMELINE_CHANGED": TimelineChanged,
    "SEQUENCE_GAP": SequenceGap,
    "HELD": Held,
}
"""Reasons that have a class of their own; looked up before the status."""

ERROR_OF_STATUS: dict[grpc.StatusCode, type[EverlearnClientError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgument,
    grpc.StatusCode.OUT_OF_RANGE: InvalidArgument,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.ABORTED: Conflict,
    grpc.StatusCode.ALREADY_EXISTS: Conflict,
    grpc.StatusCode.FAILED_PRECONDITION: FailedPrecondition,
    grpc.StatusCode.UNAUTHENTICATED: AccessDenied,
    grpc.StatusCode.PERMISSION_DENIED: AccessDenied,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Overloaded,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    # Nobody here cancels a call and then asks for its error: the other side went away.
    grpc.StatusCode.CANCELLED: Unavailable,
    grpc.StatusCode.DATA_LOSS: DataLoss,
    grpc.StatusCode.UNIMPLEMENTED: ServerBug,
    grpc.StatusCode.INTERNAL: ServerBug,
    grpc.StatusCode.UNKNOWN: ServerBug,
}
"""The one table from gRPC statuses to errors."""


class RpcFailure(Protocol):
    """What grpc.RpcError of a call and grpc.aio.AioRpcError have in common."""

    def code(self) -> grpc.StatusCode:
        """The status."""

    def details(self) -> str | None:
        """Its text."""

    def trailing_metadata(self) -> object:
        """Key-value pairs; the rich status is one of them."""


def from_rpc_error(error: grpc.RpcError | RpcFailure) -> EverlearnClientError:
    """Turns the error of any gRPC call, sync or asyncio, into ours.

    A transport failure that gRPC reports as INTERNAL or UNKNOWN (a reset stream) becomes Unavailable.
    """
    code, text = error.code(), error.details() or ""
    rich = _rich_status(error.trailing_metadata())
    details = _Details.read(rich)
    if not details.reason and code in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN) and _is_reset(text):
        code = grpc.StatusCode.UNAVAILABLE
    return _build(code, text or code.name, details)


def from_status(status: object) -> EverlearnClientError:
    """Turns a google.rpc.Status message (an operation's `error`) into ours."""
    number, text = int(getattr(status, "code", 2)), str(getattr(status, "message", ""))
    code = next((c for c in grpc.StatusCode if c.value[0] == number), grpc.StatusCode.UNKNOWN)
    return _build(code, text or code.name, _Details.read(status))


def from_code(name: str, message: str, field: str) -> EverlearnClientError:
    """Turns an error that travels inside a response (name of a google.rpc.Code) into ours."""
    code = grpc.StatusCode.__members__.get(name, grpc.StatusCode.UNKNOWN)
    return _build(code, message, _Details(field=field))


@dataclasses.dataclass
class _Details:
    reason: str = ""
    field: str = ""
    retry_after_s: float | None = None
    metadata: dict[str, str] = dataclasses.field(default_factory=dict)

    @classmethod
    def read(cls, status: object | None) -> _Details:
        details = cls()
        for packed in getattr(status, "details", ()):
            info, bad, retry = (
                error_details_pb2.ErrorInfo(),
                error_details_pb2.BadRequest(),
                error_details_pb2.RetryInfo(),
            )
            if packed.Unpack(info) and info.domain == DOMAIN:
                details.reason, details.metadata = info.reason, dict(info.metadata)
                # A BadRequest goes only with INVALID_ARGUMENT; elsewhere (no such model) the path is here.
                details.field = details.field or info.metadata.get("field", "")
            elif packed.Unpack(bad) and bad.field_violations:
                details.field = bad.field_violations[0].field
            elif packed.Unpack(retry):
                details.retry_after_s = retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9
        # BadRequest is for wrong values only; a refusal for the state's sake names its field here.
        details.field = details.field or details.metadata.get("field", "")
        return details


def _build(code: grpc.StatusCode, message: str, details: _Details) -> EverlearnClientError:
    kind = ERROR_OF_REASON.get(details.reason) or ERROR_OF_STATUS.get(code, ServerBug)
    if issubclass(kind, SequenceGap):
        expected = details.metadata.get("expected", "")
        return kind(message, expected=int(expected) if expected.isdecimal() else 0, field=details.field, code=code.name)
    if issubclass(kind, TimelineChanged):
        durable = details.metadata.get("durable", "")
        return kind(
            message,
            durable_sequence=int(durable) if durable.isdecimal() else 0,
            timeline=details.metadata.get("timeline", ""),
            field=details.field,
            code=code.name,
        )
    if issubclass(kind, Overloaded):
        return kind(
            message,
            retry_after_s=details.retry_after_s,
            field=details.field,
            reason=details.reason,
            code=code.name,
        )
    return kind(message, field=details.field, reason=details.reason, code=code.name)


def _rich_status(metadata: object) -> object | None:
    for key, value in metadata or ():  # type: ignore[attr-defined]  # a tuple or an aio.Metadata, both of pairs
        if key == _DETAILS_KEY:
            try:
                return status_pb2.Status.FromString(value)  # type: ignore[no-any-return]  # generated, untyped
            except DecodeError:
                return None
    return None


def _is_reset(text: str) -> bool:
    return any(sign in text for sign in _RESETS)


_RESETS = (
    "RST_STREAM",
    "Stream removed",
    "Connection reset",
    "Socket closed",
    # grpc.aio says this, in place of the server's status, where a write failed because the call had ended (grpc#36066).
    "Internal error from Core",
)
