"""The hub client's cache layout, so that it and we read each other's downloads.

`models--owner--name/` holds `blobs/ETAG` (content), `snapshots/COMMIT/PATH` (links to blobs) and `trees/COMMIT.json`
(what the commit holds). ETAG is the sha256 of an LFS file, the git blob's sha1 of any other: content names itself.
Documented at huggingface.co/docs/huggingface_hub, "Understand caching".
"""

from __future__ import annotations

import json
import os
import uuid
from pathlib import Path
from typing import Any

from huggingface_hub.file_download import repo_folder_name

from everlearn.errors import ForbiddenFileError
from everlearn.hubs._digests import HEX40, HEX64
from everlearn.hubs._hf_api import Entry
from everlearn.hubs._policy import check_plain

TREE_FORMAT = 1


class RepoCache:
    """One repository's folder in the cache."""

    def __init__(self, cache: Path, repo_id: str) -> None:
        self._cache = cache
        self._repo_id = repo_id
        self._root = cache / repo_folder_name(repo_id=repo_id, repo_type="model")

    def blob(self, entry: Entry) -> Path:
        """Where a file's content lies, or would."""
        return self._root / "blobs" / entry.etag

    def holds(self, entry: Entry) -> bool:
        """Whether content of the right size is there. Its bytes are verified by `fetch`, not here."""
        try:
            return self.blob(entry).stat().st_size == entry.size_bytes
        except OSError:
            return False

    def listing(self, commit: str) -> tuple[Entry, ...] | None:
        """What a commit holds, if it was ever listed here: a commit never changes."""
        # Read here and not by the client's get_cached_repo_tree, which leaves the sha256 out (2.4).
        try:
            data = json.loads(self._tree(commit).read_text(encoding="utf-8"))
            if data["format_version"] != TREE_FORMAT:
                return None
            return tuple(_from_json(name, item) for name, item in data["files"].items())
        except (OSError, ValueError, LookupError, TypeError, AttributeError, ForbiddenFileError):
            # Missing, or not what this version writes: the hub is asked instead.
            return None

    def snapshot(self, commit: str) -> tuple[Entry, ...] | None:
        """What the client left of a commit without a listing (older versions wrote none): links name their content."""
        folder = self._root / "snapshots" / commit
        entries = []
        for link in sorted(folder.rglob("*")):
            etag = os.path.basename(os.readlink(link)) if link.is_symlink() else ""
            is_sha256 = HEX64.fullmatch(etag) is not None
            if (is_sha256 or HEX40.fullmatch(etag)) and link.is_file():
                entries.append(
                    Entry(
                        name=link.relative_to(folder).as_posix(),
                        size_bytes=link.stat().st_size,
                        git_sha1="" if is_sha256 else etag,
                        sha256=etag if is_sha256 else None,
                    )
                )
        return tuple(entries) or None

    def _tree(self, commit: str) -> Path:
        return self._root / "trees" / f"{commit}.json"

    def remember(self, commit: str, entries: tuple[Entry, ...]) -> None:
        """Keeps a listing in the client's own form (format 1), so that a pinned fetch asks the hub nothing."""
        path = self._tree(commit)
        path.parent.mkdir(parents=True, exist_ok=True)
        files = {entry.name: _as_json(entry) for entry in sorted(entries, key=lambda entry: entry.name)}
        text = json.dumps({"format_version": TREE_FORMAT, "files": files}, indent=1)
        temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.tmp")
        try:
            temporary.write_text(text, encoding="utf-8")
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    def link(self, commit: str, entry: Entry) -> Path:
        """Makes the content appear under its name at the commit, and returns that path."""
        check_plain(entry.name)
        pointer = self._root / "snapshots" / commit / entry.name
        pointer.parent.mkdir(parents=True, exist_ok=True)
        target = os.path.relpath(self.blob(entry), pointer.parent)
        if not (pointer.is_symlink() and os.readlink(pointer) == target):
            temporary = pointer.with_name(f".{uuid.uuid4().hex[:8]}.tmp")
            temporary.symlink_to(target)
            # Replaces whatever stood there, a reader sees the old or the new.
            temporary.replace(pointer)
        return pointer


def _as_json(entry: Entry) -> dict[str, object]:
    plain: dict[str, object] = {"size": entry.size_bytes, "blob_id": entry.git_sha1}
    return plain | ({"lfs_sha256": entry.sha256, "lfs_size": entry.size_bytes} if entry.sha256 else {})


def _from_json(name: str, item: dict[str, Any]) -> Entry:
    check_plain(name)
    size, sha256 = item["size"], item.get("lfs_sha256")
    if type(size) is not int or not HEX40.fullmatch(item["blob_id"]) or (sha256 and not HEX64.fullmatch(sha256)):
        raise ValueError("not an entry of a listing")
    return Entry(name=name, size_bytes=item.get("lfs_size") or size, git_sha1=item["blob_id"], sha256=sha256)
