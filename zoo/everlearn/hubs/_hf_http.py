"""HTTP to a Hugging Face hub over its client's own session and error types, with redirects looked at one by one.

The token goes to the hub's own origin only, and is in no message: messages name the source, never a URL.
"""

from __future__ import annotations

import ipaddress
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import urljoin, urlsplit

from huggingface_hub import get_session
from huggingface_hub.errors import (  # type: ignore[attr-defined]  # HTTPError: the transport's base, httpx or httpx2
    DisabledRepoError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import hf_raise_for_status  # type: ignore[attr-defined]  # public, re-exported silently

from everlearn.errors import (
    AccessDeniedError,
    ForbiddenFileError,
    HubError,
    SourceNotFoundError,
    UnavailableError,
)

MAX_REDIRECTS = 5
PAUSES_S = (0.2, 0.8)
"""Between tries of a request that may succeed later; short, because a person waits for `plan`."""
FIELD_SOURCE = "spec.backbone.source"

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What a request is about, for messages."""

    source: str
    host: str
    has_token: bool
    revision: str
    file: str = ""


@dataclass(frozen=True, kw_only=True)
class Reply:
    """An answer whose body is still to be read."""

    status: int
    headers: Mapping[str, str]
    """Of the last answer; keys in lower case."""
    commit: str | None
    """Commit that the hub says it serves, from any answer on the way."""
    chunks: Iterator[bytes]
    """The body as sent."""


@contextmanager
def open_reply(
    url: str, *, headers: Mapping[str, str], params: Mapping[str, str], timeout_s: float, subject: Subject
) -> Iterator[Reply]:
    """GETs a URL. Errors of the transport while the body is read are translated too.

    Raises UnavailableError for what may work later, and the HubErrors for what will not.
    """
    failure: HubError | UnavailableError
    try:
        with ExitStack() as stack:
            yield _follow(stack, url, headers, params, timeout_s, subject)
        return
    except (HTTPError, OfflineModeIsEnabled, EntryNotFoundError) as error:
        failure = _explain(error, subject)
    raise failure from None


def retrying(request: Callable[[], T]) -> T:
    """Asks again after UnavailableError, a few times."""
    for pause_s in PAUSES_S:
        try:
            return request()
        except UnavailableError:
            time.sleep(pause_s)
    return request()


def _follow(
    stack: ExitStack,
    url: str,
    headers: Mapping[str, str],
    params: Mapping[str, str],
    timeout_s: float,
    subject: Subject,
) -> Reply:
    # identity: a compressed body would have another length and digest than the file.
    sent = {**headers, "accept-encoding": "identity"}
    commit: str | None = None
    for _ in range(MAX_REDIRECTS):
        # Settings such as proxies and certificates come with the session; redirects do not, they are checked here.
        response = stack.enter_context(
            get_session().stream(
                "GET", url, headers=sent, params=params or None, timeout=timeout_s, follow_redirects=False
            )
        )
        hf_raise_for_status(response)
        commit = commit or response.headers.get("x-repo-commit")
        if not response.has_redirect_location:
            lowered = {key.lower(): value for key, value in response.headers.items()}
            return Reply(status=response.status_code, headers=lowered, commit=commit, chunks=response.iter_raw())
        target = _joined(url, response.headers["location"], subject)
        _check_redirect(url, target, subject)
        if _origin(target) != _origin(url):
            sent.pop("authorization", None)
        url, params = target, {}
    raise UnavailableError(f"{subject.host} redirects {subject.source} in circles", field=FIELD_SOURCE)


def _joined(url: str, location: str, subject: Subject) -> str:
    try:
        target = urljoin(url, location)
        # Reading the port is what checks it.
        _ = urlsplit(target).port
    except ValueError:
        raise UnavailableError(f"{subject.host} redirects {subject.source} nowhere", field=FIELD_SOURCE) from None
    return target


def _check_redirect(url: str, target: str, subject: Subject) -> None:
    """Refuses to be sent inwards: a public hub may point to its own storage, not at this machine or network."""
    here, there = urlsplit(url), urlsplit(target)
    downgraded = here.scheme == "https" and there.scheme != "https"
    inwards = _is_internal(there.hostname) and not _is_internal(here.hostname)
    if there.scheme not in ("http", "https") or downgraded or inwards:
        raise ForbiddenFileError(
            f"{subject.host} redirects {subject.source} to an address that is not followed ({there.scheme}, "
            f"{'internal' if inwards else 'external'}); right would be a mirror that serves files itself or over https",
            field=FIELD_SOURCE,
        )


def _is_internal(host: str | None) -> bool:
    try:
        # The resolver knows every spelling of an address (decimal, octal, mapped); names are looked up too.
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        # A proxy may know names that this machine does not.
        return False
    return any(not ipaddress.ip_address(str(address[4][0]).partition("%")[0]).is_global for address in found)


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def _explain(error: Exception, subject: Subject) -> HubError | UnavailableError:
    source, host = subject.source, subject.host
    if isinstance(error, OfflineModeIsEnabled):
        return UnavailableError(f"the hub's client is set to offline, and {source} is not cached", field=FIELD_SOURCE)
    if isinstance(error, GatedRepoError | DisabledRepoError):
        return _denied(subject, "gated" if isinstance(error, GatedRepoError) else "disabled by the hub")
    if isinstance(error, RepositoryNotFoundError):
        private = (
            "or the server's token does not open it"
            if subject.has_token
            else "or it is private and the server has no token"
        )
        return SourceNotFoundError(f"{host} has no repository {source}, {private}", field=FIELD_SOURCE)
    if isinstance(error, RevisionNotFoundError):
        return SourceNotFoundError(
            f"{source} has no revision {subject.revision!r}; right would be one of its branches, tags or commits",
            field="spec.backbone.revision",
        )
    if isinstance(error, EntryNotFoundError):
        return SourceNotFoundError(
            f"{source} has no file {subject.file!r} at {subject.revision}", field="spec.backbone.file"
        )
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if status in (401, 403):
        return _denied(subject, "closed to this server")
    if status == 404:
        return SourceNotFoundError(
            f"{host} does not know {source} at {subject.revision!r} {subject.file}".rstrip(), field=FIELD_SOURCE
        )
    what = f"answers {status}" if status else f"does not answer as it should ({type(error).__name__})"
    return UnavailableError(f"{host} {what} for {source}; try again later", field=FIELD_SOURCE)


def _denied(subject: Subject, why: str) -> AccessDeniedError:
    what = (
        "the server's token does not open it: accept the repository's conditions with the account of that token, or "
        "give the server another token"
        if subject.has_token
        else "the server has no token: accept the repository's conditions on its page, and give the server a token "
        "of that account (HF_TOKEN)"
    )
    return AccessDeniedError(f"{subject.source} is {why}, and {what}", field=FIELD_SOURCE)
