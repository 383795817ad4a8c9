"""`hf://owner/name`: the Hugging Face hub or a mirror of it, pinned to a commit, resumed after a kill, verified.

Names, errors, session, headers and cache layout are the hub client's own (huggingface_hub); the transfer is not, since
the client starts over after a kill and does not check what it received, neither over HTTP nor, as to resuming, Xet.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import ClassVar

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # public, re-exported silently

from everlearn.errors import IntegrityError, MovingReferenceError, SpecError, UnavailableError
from everlearn.hubs._digests import HEX40, digests_of
from everlearn.hubs._download import download
from everlearn.hubs._hf_api import Entry, Remote
from everlearn.hubs._hf_cache import RepoCache
from everlearn.hubs._policy import (
    FIELD_SHA256,
    MAX_WEIGHTS_BYTES,
    check_pinned,
    check_size,
    choose_weights,
    side_files,
)
from everlearn.hubs._safetensors import check_safetensors
from everlearn.hubs.base import Hub, Progress, RemoteFile, Resolved
from everlearn.spec.model import Backbone
from everlearn.values import BackboneFiles

logger = logging.getLogger(__name__)


class HuggingFace(Hub):
    """Fetches one weights file, and config.json where there is one, into the client's own cache."""

    scheme: ClassVar[str] = "hf"
    timeout_s: ClassVar[float] = 10.0
    """Without a byte from the hub; the client's own figure."""

    def resolve(self, backbone: Backbone) -> Resolved:
        """The commit that the revision (default `main`) is now, and the files that a fetch needs.

        Raises SourceNotFoundError, AccessDeniedError, UnavailableError, ForbiddenFileError.
        """
        repo_id = _repo_id(backbone)
        cache = RepoCache(self.settings.cache, repo_id)
        commit, entries = self._listing(cache, repo_id, backbone.revision or "main")
        needed = _needed(entries, backbone)
        return Resolved(
            revision=commit,
            files=tuple(
                RemoteFile(name=entry.name, size_bytes=entry.size_bytes, sha256=entry.sha256, cached=cache.holds(entry))
                for entry in needed
            ),
        )

    def fetch(self, backbone: Backbone, progress: Progress) -> BackboneFiles:
        """The verified files of a commit. Where all are cached, nothing is asked of the hub.

        Cached files are read and verified again each time; damaged ones are downloaded anew.

        Raises MovingReferenceError, IntegrityError, ForbiddenFileError, SourceNotFoundError, AccessDeniedError,
        UnavailableError, PreconditionError with reason DISK_FULL.
        """
        repo_id, commit, cache, needed = self._pinned(backbone)
        weights = needed[0]
        found = self._bring(cache, repo_id, commit, needed, progress)
        if backbone.sha256 and found[weights.name] != backbone.sha256:
            raise _not_pinned(backbone, found[weights.name])
        if backbone.format == "safetensors":
            check_safetensors(cache.blob(weights))
        return _files(backbone, commit, cache, needed, found)

    def configuration(self, backbone: Backbone) -> BackboneFiles:
        """The files beside the weights; where a repository has none, the weights file tells what there is to tell."""
        repo_id, commit, cache, needed = self._pinned(backbone)
        configs = tuple(entry for entry in needed if entry.name in side_files(backbone))
        if not configs or backbone.loader == "onnx":
            return self.fetch(backbone, lambda done, total: None)
        found = self._bring(cache, repo_id, commit, configs, lambda done, total: None)
        return _files(backbone, commit, cache, configs, found)

    def _pinned(self, backbone: Backbone) -> tuple[str, str, RepoCache, tuple[Entry, ...]]:
        """Repository, commit, cache and the files needed. Raises as `fetch`, before anything is downloaded."""
        repo_id = _repo_id(backbone)
        commit = backbone.revision or "main"
        if not HEX40.fullmatch(commit):
            raise MovingReferenceError(
                f"{commit!r} of {backbone.source} may be another commit tomorrow; right would be the 40-hex commit, "
                "which `everlearn lock` writes",
                field="spec.backbone.revision",
            )
        check_pinned(backbone, self.scheme)
        cache = RepoCache(self.settings.cache, repo_id)
        _, entries = self._listing(cache, repo_id, commit)
        needed = _needed(entries, backbone)
        weights = needed[0]
        if backbone.sha256 and weights.sha256 and weights.sha256 != backbone.sha256:
            raise _not_pinned(backbone, weights.sha256)
        return repo_id, commit, cache, needed

    def _bring(
        self, cache: RepoCache, repo_id: str, commit: str, entries: tuple[Entry, ...], progress: Progress
    ) -> dict[str, str]:
        """Brings files into the cache; name -> sha256."""
        total = sum(entry.size_bytes for entry in entries)
        done = 0
        found: dict[str, str] = {}
        for entry in entries:
            found[entry.name] = self._verified(cache, repo_id, commit, entry, partial(_tell, progress, done, total))
            done += entry.size_bytes
        progress(total, total)
        return found

    def _listing(self, cache: RepoCache, repo_id: str, revision: str) -> tuple[str, tuple[Entry, ...]]:
        """Commit and files: from the cache where the revision is a commit that was listed before."""
        pinned = HEX40.fullmatch(revision) is not None
        if pinned and (cached := cache.listing(revision)):
            return revision, cached
        try:
            remote = self._remote(repo_id)
            commit = remote.commit(revision)
            entries = remote.tree(commit)
        except UnavailableError:
            if pinned and (left := cache.snapshot(revision)):
                return revision, left
            raise
        cache.remember(commit, entries)
        return commit, entries

    def _verified(
        self, cache: RepoCache, repo_id: str, commit: str, entry: Entry, report: Callable[[int], None]
    ) -> str:
        """Brings one file into the cache and returns its sha256."""
        blob = cache.blob(entry)
        if cache.holds(entry):
            digests = digests_of(blob, report)
            if entry.fits(digests):
                return digests.sha256
            if self.settings.offline:
                raise IntegrityError(
                    f"the cached {entry.name!r} is not what commit {commit} pins; go online once, and it is "
                    "downloaded anew",
                    field=FIELD_SHA256,
                )
            logger.warning("a cached file is damaged and is downloaded anew: %s of %s", entry.name, repo_id)
        remote = self._remote(repo_id)
        download(entry, blob, lambda offset: remote.open(entry, commit, offset), report)
        return entry.sha256 or digests_of(blob).sha256

    def _remote(self, repo_id: str) -> Remote:
        if self.settings.offline:
            raise UnavailableError(
                f"hubs are set to offline, and not all of hf://{repo_id} is cached; go online once, or bring the cache",
                field="spec.backbone.source",
            )
        return Remote(self.settings, repo_id, timeout_s=self.timeout_s)


def _repo_id(backbone: Backbone) -> str:
    repo_id = backbone.source.removeprefix("hf://")
    try:
        validate_repo_id(repo_id)
    except HFValidationError:
        valid = False
    else:
        valid = repo_id.count("/") == 1
    if not valid:
        raise SpecError(
            f"{backbone.source!r} is not hf://owner/name (letters, digits, '-', '_', '.'); a revision goes into "
            "`revision`, a file into `file`",
            field="spec.backbone.source",
        )
    return repo_id


def _needed(entries: tuple[Entry, ...], backbone: Backbone) -> tuple[Entry, ...]:
    """The weights file first, then those that belong beside it, where they are there."""
    by_name = {entry.name: entry for entry in entries}
    weights = by_name[choose_weights(by_name, backbone)]
    check_size(weights.name, weights.size_bytes, MAX_WEIGHTS_BYTES)
    sides = [(by_name[name], limit) for name, limit in side_files(backbone).items() if name in by_name]
    for side, limit in sides:
        check_size(side.name, side.size_bytes, limit)
    return (weights, *(side for side, _ in sides))


def _files(
    backbone: Backbone, commit: str, cache: RepoCache, entries: tuple[Entry, ...], found: dict[str, str]
) -> BackboneFiles:
    paths = {entry.name: cache.link(commit, entry) for entry in entries}
    return BackboneFiles(source=backbone.source, revision=commit, paths=paths, sha256=found)


def _tell(progress: Progress, before: int, total: int, done: int) -> None:
    progress(before + done, total)


def _not_pinned(backbone: Backbone, found: str) -> IntegrityError:
    return IntegrityError(
        f"the weights of {backbone.source} have sha256 {found}, and {backbone.sha256} is pinned; pin the one that is "
        "meant",
        field=FIELD_SHA256,
    )
