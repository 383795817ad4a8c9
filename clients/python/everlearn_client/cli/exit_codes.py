"""What the exit code of `everlearn` means. Part of the interface: scripts build on it.

0    done; plan and diff: nothing differs
1    diff: the file differs from the server; doctor: something is bad
2    plan: changes are pending
3    invalid input: usage, a file, a declaration, a sample
4    not found
5    stale: another plan or etag is current, the learner was fenced, the server was restored
6    refused: consent, credentials, a gate or the model's state
7    unavailable: no server, overloaded, or no answer in time; trying again may help
8    fault of the server, or damaged data
9    partly done: some batches were rejected, some files have no prediction, some candidates could not be tried
130  interrupted
"""

from __future__ import annotations

from everlearn_client import errors as e

OK = 0
DIFFERENT = 1
CHANGES = 2
INVALID = 3
NOT_FOUND = 4
STALE = 5
REFUSED = 6
UNAVAILABLE = 7
FAULT = 8
PARTLY = 9
INTERRUPTED = 130

EXIT_CODE_OF: tuple[tuple[type[e.EverlearnClientError], int], ...] = (
    (e.InvalidArgument, INVALID),
    (e.NotFound, NOT_FOUND),
    (e.Conflict, STALE),
    (e.FailedPrecondition, REFUSED),
    (e.AccessDenied, REFUSED),
    (e.Overloaded, UNAVAILABLE),
    (e.DeadlineExceeded, UNAVAILABLE),
    (e.Unavailable, UNAVAILABLE),
    (e.DataLoss, FAULT),
    (e.ServerBug, FAULT),
    (e.EverlearnClientError, FAULT),
)
"""Most specific first."""


def exit_code_of(error: e.EverlearnClientError) -> int:
    """The code the command ends with after this error."""
    return next(code for kind, code in EXIT_CODE_OF if isinstance(error, kind))


def table() -> list[str]:
    """The lines of the table above, for `--help`."""
    return [line for line in (__doc__ or "").splitlines() if line[:1].isdigit()]
