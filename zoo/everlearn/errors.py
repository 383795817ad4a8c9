"""Every error everlearn raises on purpose, as one tree.

    EverlearnError
    +-- InvalidError              the caller's value is wrong; `field` is its path
    |   +-- SpecError             a declaration
    |   +-- InputError            a sample, label or tensor
    |   |   +-- UnlearnableError  a batch that no step can be made of; the next one can
    |   +-- PayloadTooLargeError  larger than the limit named in the message
    +-- NotFoundError             no such model, version, export, operation
    +-- ConflictError             the caller's view is stale (etag, plan id)
    +-- FencedError               a newer epoch of the same client exists
    +-- TimelineChangedError      acknowledgements given before a restore are void
    +-- PreconditionError         right request, wrong state; `reason` is machine-readable
    |   +-- SequenceGapError      a batch before this one is missing
    |   +-- NeedsConsentError     the plan replaces or deletes and the caller has not agreed
    |   +-- GateError             the version does not pass its gate
    +-- OverloadedError           the queue is full; retry after `retry_after_s`
    |   +-- DiskFullError         too little free space to take anything in
    +-- ExpiredError              the deadline passed while the request waited
    +-- UnavailableError          draining, or a hub cannot be reached
    +-- HubError                  a source could not be turned into verified files
    |   +-- SourceNotFoundError   no such repository, revision or file
    |   +-- AccessDeniedError     gated or private, and the token does not open it
    |   +-- IntegrityError        a file is not the one that was pinned
    |   +-- ForbiddenFileError    a file type that may run code, or that the spec does not allow
    |   +-- MovingReferenceError  a branch or tag where a commit is needed
    +-- BackboneError             files that do not make a trunk (architecture, keys, shapes, parity)
    +-- ParityError               an export that does not predict what the server predicts
    +-- DataLossError             stored bytes do not match their digest

To add one: derive it here, give it a message that says what was wrong and then what would be right, and add its row
to `everlearn_server.errors.STATUS_OF` (a test fails until both exist). Errors pickle.
"""

from __future__ import annotations


class EverlearnError(Exception):
    """Base of all deliberate errors. `field` is the path of the offending field, where there is one."""

    reason = "ERROR"

    def __init__(self, message: str, *, field: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.field = field

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.__dict__.copy()))


def _rebuild(kind: type[EverlearnError], state: dict[str, object]) -> EverlearnError:
    error = kind.__new__(kind)
    Exception.__init__(error, state["message"])
    error.__dict__.update(state)
    return error


class InvalidError(EverlearnError):
    """The caller's value is wrong."""

    reason = "INVALID"


class SpecError(InvalidError):
    """A declaration is wrong. `problems` lists (path, message) of each; `field` is the first path."""

    reason = "INVALID_DECLARATION"

    def __init__(self, message: str, *, field: str = "", problems: tuple[tuple[str, str], ...] = ()) -> None:
        super().__init__(message, field=field)
        self.problems = problems or ((field, message),)


class InputError(InvalidError):
    """A sample, label or tensor is wrong."""

    reason = "INVALID_INPUT"


class UnlearnableError(InputError):
    """A batch that no step can be made of; the next one can."""

    reason = "UNLEARNABLE"


class PayloadTooLargeError(InvalidError):
    """A payload is larger than the limit that the message names."""

    reason = "TOO_LARGE"


class NotFoundError(EverlearnError):
    """There is no such model, version, export or operation."""

    reason = "NOT_FOUND"


class ConflictError(EverlearnError):
    """The caller's view is stale: another etag or plan is current."""

    reason = "STALE"


class FencedError(EverlearnError):
    """A newer epoch of the same client exists; this connection may not write any more."""

    reason = "FENCED"


class TimelineChangedError(EverlearnError):
    """The server's history is not the one the client's acknowledgements come from.

    `timeline` is the present one, and `durable` the client's last sequence that is durable in it.
    """

    reason = "TIMELINE_CHANGED"

    def __init__(self, message: str, *, field: str = "", timeline: str = "", durable: int = 0) -> None:
        super().__init__(message, field=field)
        self.timeline = timeline
        self.durable = durable


class PreconditionError(EverlearnError):
    """The request is right and the state is not. `reason` is machine-readable."""

    reason = "FAILED_PRECONDITION"

    def __init__(self, message: str, *, field: str = "", reason: str = "") -> None:
        super().__init__(message, field=field)
        if reason:
            self.reason = reason


class SequenceGapError(PreconditionError):
    """A batch before this one is missing; resend from `expected`."""

    def __init__(self, message: str, *, expected: int, field: str = "batch.sequence") -> None:
        super().__init__(message, field=field, reason="SEQUENCE_GAP")
        self.expected = expected


class NeedsConsentError(PreconditionError):
    """The plan replaces or deletes something, and the caller has not agreed to that."""

    reason = "NEEDS_CONSENT"


class GateError(PreconditionError):
    """A version does not pass the gate that its model declares."""

    reason = "GATE_FAILED"


class OverloadedError(EverlearnError):
    """The queue is full."""

    reason = "QUEUE_FULL"

    def __init__(self, message: str, *, retry_after_s: float, field: str = "") -> None:
        super().__init__(message, field=field)
        self.retry_after_s = retry_after_s


class DiskFullError(OverloadedError):
    """Too little free space to take anything in."""

    reason = "DISK_FULL"


class ExpiredError(EverlearnError):
    """The caller's deadline passed while the request waited."""

    reason = "EXPIRED"


class UnavailableError(EverlearnError):
    """Cannot be done now, may be done later: draining, or a hub cannot be reached."""

    reason = "UNAVAILABLE"


class HubError(EverlearnError):
    """A source could not be turned into verified files."""

    reason = "HUB"


class SourceNotFoundError(HubError):
    """The hub has no such repository, revision or file."""

    reason = "SOURCE_NOT_FOUND"


class AccessDeniedError(HubError):
    """The repository is gated or private, and the server's token does not open it."""

    reason = "ACCESS_DENIED"


class IntegrityError(HubError):
    """A file is not the one that was pinned."""

    reason = "DIGEST_MISMATCH"


class ForbiddenFileError(HubError):
    """A file type that may run code, or that the spec does not allow."""

    reason = "FORBIDDEN_FILE"


class MovingReferenceError(HubError):
    """A branch or tag stands where an immutable commit is needed."""

    reason = "MOVING_REFERENCE"


class BackboneError(EverlearnError):
    """Verified files do not make a trunk: architecture, keys, shapes, or parity with the source model."""

    reason = "BACKBONE"


class ParityError(EverlearnError):
    """An export does not predict what the server predicts, and is not released."""

    reason = "PARITY"


class DataLossError(EverlearnError):
    """Stored bytes do not match their digest."""

    reason = "DATA_LOSS"
