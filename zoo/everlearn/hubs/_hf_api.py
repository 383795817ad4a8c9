"""What is asked of a Hugging Face hub: which commit a revision is, what a commit holds, and a file's bytes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # public, re-exported silently

from everlearn import __version__
from everlearn.errors import ForbiddenFileError, IntegrityError, MovingReferenceError, SpecError, UnavailableError
from everlearn.hubs._digests import HEX40, HEX64, Digests
from everlearn.hubs._hf_http import FIELD_SOURCE, Reply, Subject, open_reply, retrying
from everlearn.hubs._policy import check_plain
from everlearn.hubs.base import HubSettings

DEFAULT_ENDPOINT = "https://huggingface.co"
MAX_ANSWER_BYTES = 16 * 2**20
MAX_PAGES = 100
"""Of a listing; a page has 1000 files."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One file of a commit, as the hub lists it."""

    name: str
    size_bytes: int
    git_sha1: str
    """Of the git blob; for an LFS file, of its pointer."""
    sha256: str | None
    """Of an LFS file's content; None for small files."""

    @property
    def etag(self) -> str:
        """What the cache names the content by."""
        return self.sha256 or self.git_sha1

    def fits(self, digests: Digests) -> bool:
        """Whether content with these digests is this file's."""
        return (digests.sha256 if self.sha256 else digests.git_sha1) == self.etag


class Remote:
    """One repository of one hub."""

    def __init__(self, settings: HubSettings, repo_id: str, *, timeout_s: float) -> None:
        self._endpoint = (settings.endpoint or DEFAULT_ENDPOINT).rstrip("/")
        parts = urlsplit(self._endpoint)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise SpecError("the hub's endpoint must be an http or https address", field="settings.endpoint")
        self._repo_id = repo_id
        self._timeout_s = timeout_s
        self._has_token = bool(settings.token)
        self._host = parts.hostname
        # False, not None: the client would otherwise look for a token in this machine's environment and home.
        self._headers = build_hf_headers(
            token=settings.token or False, library_name="everlearn", library_version=__version__
        )

    def commit(self, revision: str) -> str:
        """The commit that a branch, tag or commit is now.

        Raises SourceNotFoundError, AccessDeniedError, UnavailableError, MovingReferenceError.
        """
        answer, _ = self._json(f"/api/models/{self._repo_id}/revision/{quote(revision, safe='')}", {}, revision)
        sha = answer.get("sha") if isinstance(answer, dict) else None
        if not isinstance(sha, str) or not HEX40.fullmatch(sha):
            raise self._not_a_hub()
        if HEX40.fullmatch(revision) and sha != revision:
            raise MovingReferenceError(
                f"{revision} of hf://{self._repo_id} is a branch or tag that only looks like a commit; it is {sha} now",
                field="spec.backbone.revision",
            )
        return sha

    def tree(self, commit: str) -> tuple[Entry, ...]:
        """All files of a commit.

        Raises as `commit`, and ForbiddenFileError for a listing with a path that leads elsewhere.
        """
        entries: list[Entry] = []
        url = f"/api/models/{self._repo_id}/tree/{commit}"
        params = {"recursive": "true", "expand": "false"}
        for _ in range(MAX_PAGES):
            answer, following = self._json(url, params, commit)
            params = {}
            if not isinstance(answer, list):
                raise self._not_a_hub()
            entries += [self._entry(item) for item in answer if not _is_folder(item)]
            if following is None:
                return tuple(entries)
            url = following
        raise ForbiddenFileError(
            f"hf://{self._repo_id} has more than {len(entries)} files; take a repository of one model",
            field=FIELD_SOURCE,
        )

    def open(self, entry: Entry, commit: str, offset: int) -> AbstractContextManager[Reply]:
        """A file's bytes from an offset on; a hub may answer from the start instead."""
        return self._open(entry, commit, offset)

    @contextmanager
    def _open(self, entry: Entry, commit: str, offset: int) -> Iterator[Reply]:
        headers = dict(self._headers)
        if offset:
            headers["range"] = f"bytes={offset}-"
        url = f"{self._endpoint}/{self._repo_id}/resolve/{commit}/{quote(entry.name)}"
        subject = self._subject(commit, entry.name)
        with open_reply(url, headers=headers, params={}, timeout_s=self._timeout_s, subject=subject) as reply:
            if reply.commit is not None and reply.commit != commit:
                raise IntegrityError(
                    f"{self._host} serves commit {reply.commit[:40]!r} of hf://{self._repo_id} where {commit} was "
                    "asked for",
                    field="spec.backbone.revision",
                )
            yield reply

    def _json(self, path: str, params: dict[str, str], revision: str) -> tuple[Any, str | None]:
        """The answer, and the address of the next page."""
        url = path if "://" in path else f"{self._endpoint}{path}"
        raw, link = retrying(lambda: self._read(url, params, revision))
        try:
            answer = json.loads(raw)
        except (ValueError, RecursionError):
            raise self._not_a_hub() from None
        following = _next_link(link)
        if following and not urljoin(url, following).startswith(f"{self._endpoint}/"):
            # The request carries the token, so it stays with the hub.
            raise self._not_a_hub()
        return answer, urljoin(url, following) if following else None

    def _read(self, url: str, params: dict[str, str], revision: str) -> tuple[bytes, str]:
        body = bytearray()
        subject = self._subject(revision)
        with open_reply(url, headers=self._headers, params=params, timeout_s=self._timeout_s, subject=subject) as reply:
            for chunk in reply.chunks:
                body += chunk
                if len(body) > MAX_ANSWER_BYTES:
                    raise self._not_a_hub()
            return bytes(body), reply.headers.get("link", "")

    def _entry(self, item: object) -> Entry:
        """Trusts nothing of it: names become paths, digests become file names."""
        try:
            entry = _parsed(item)
        except (LookupError, TypeError, ValueError, AttributeError):
            raise self._not_a_hub() from None
        check_plain(entry.name, field=FIELD_SOURCE)
        return entry

    def _subject(self, revision: str, file: str = "") -> Subject:
        return Subject(
            source=f"hf://{self._repo_id}", host=self._host, has_token=self._has_token, revision=revision, file=file
        )

    def _not_a_hub(self) -> UnavailableError:
        return UnavailableError(
            f"{self._host} does not answer as a Hugging Face hub does; check the endpoint", field=FIELD_SOURCE
        )


def _is_folder(item: object) -> bool:
    return isinstance(item, dict) and item.get("type") == "directory"


def _parsed(item: Any) -> Entry:
    lfs = item.get("lfs")
    size, etag = (lfs["size"], lfs["oid"]) if lfs else (item["size"], item["oid"])
    sound = type(size) is int and size >= 0 and isinstance(item["path"], str)
    if not sound or not HEX40.fullmatch(item["oid"]) or not (HEX64 if lfs else HEX40).fullmatch(etag):
        raise ValueError("not an entry of a listing")
    return Entry(name=item["path"], size_bytes=size, git_sha1=item["oid"], sha256=etag if lfs else None)


def _next_link(header: str) -> str | None:
    """Address of the next page in a Link header (RFC 8288).

    >>> _next_link('<https://hub/api?cursor=x>; rel="next"')
    'https://hub/api?cursor=x'
    """
    for part in header.split(","):
        address, _, relation = part.partition(";")
        if 'rel="next"' in relation:
            return address.strip().strip("<>")
    return None
