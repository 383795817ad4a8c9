"""The one table from errors to gRPC statuses. Servicers contain no `try`; `rpc.status` applies the table."""

from __future__ import annotations

from typing import TypeVar

import grpc

from everlearn import errors as e

E = TypeVar("E", bound=BaseException)

STATUS_OF: tuple[tuple[type[e.EverlearnError], grpc.StatusCode], ...] = (
    (e.PayloadTooLargeError, grpc.StatusCode.INVALID_ARGUMENT),
    (e.InvalidError, grpc.StatusCode.INVALID_ARGUMENT),
    (e.NotFoundError, grpc.StatusCode.NOT_FOUND),
    (e.ConflictError, grpc.StatusCode.ABORTED),
    (e.FencedError, grpc.StatusCode.ABORTED),
    (e.TimelineChangedError, grpc.StatusCode.ABORTED),
    (e.PreconditionError, grpc.StatusCode.FAILED_PRECONDITION),
    (e.OverloadedError, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (e.ExpiredError, grpc.StatusCode.DEADLINE_EXCEEDED),
    (e.UnavailableError, grpc.StatusCode.UNAVAILABLE),
    (e.SourceNotFoundError, grpc.StatusCode.NOT_FOUND),
    (e.AccessDeniedError, grpc.StatusCode.FAILED_PRECONDITION),
    (e.IntegrityError, grpc.StatusCode.FAILED_PRECONDITION),
    (e.ForbiddenFileError, grpc.StatusCode.INVALID_ARGUMENT),
    (e.MovingReferenceError, grpc.StatusCode.INVALID_ARGUMENT),
    (e.HubError, grpc.StatusCode.UNAVAILABLE),
    (e.BackboneError, grpc.StatusCode.INVALID_ARGUMENT),
    (e.ParityError, grpc.StatusCode.FAILED_PRECONDITION),
    (e.DataLossError, grpc.StatusCode.DATA_LOSS),
    (e.EverlearnError, grpc.StatusCode.INTERNAL),
)
"""Most specific first."""


def status_of(error: BaseException) -> grpc.StatusCode:
    """The status an error is answered with; INTERNAL for anything that was not raised on purpose."""
    for kind, code in STATUS_OF:
        if isinstance(error, kind):
            return code
    return grpc.StatusCode.INTERNAL


def without_frames(error: E) -> E:
    """The same error, with nothing of where it was raised: the frames of a traceback hold the request with its payload.

    A call that ends with an error is part of a cycle of gRPC's own, and an error that is a variable of one of its own
    frames is a cycle by itself: each would keep a refused payload in memory until the garbage collector comes by.
    """
    link: BaseException | None = error
    for _ in range(_CAUSES):
        if link is None:
            break
        link.__traceback__ = None
        link = link.__cause__ or link.__context__
    return error


_CAUSES = 16
"""Errors behind an error; further ones are not ours."""
