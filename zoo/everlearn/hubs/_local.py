"""What the hubs of local files share: a file that is already here is verified where it lies, and handed over."""

from __future__ import annotations

import stat
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from everlearn.errors import ForbiddenFileError, IntegrityError, SourceNotFoundError
from everlearn.hubs._digests import digests_of
from everlearn.hubs._policy import FIELD_SHA256, MAX_WEIGHTS_BYTES, check_pinned, check_size, side_files
from everlearn.hubs._safetensors import check_safetensors
from everlearn.hubs.base import Progress, RemoteFile
from everlearn.spec.lock import sides_digest
from everlearn.spec.model import Backbone
from everlearn.spec.rules import TRANSFORMERS
from everlearn.values import BackboneFiles

FIELD_SOURCE = "spec.backbone.source"


def describe_local(path: Path, name: str) -> RemoteFile:
    """Size and sha256 of a file, read from its bytes.

    Raises SourceNotFoundError, ForbiddenFileError, PayloadTooLargeError.
    """
    size = _size_of_regular(path, name)
    return RemoteFile(name=name, size_bytes=size, sha256=digests_of(path).sha256, cached=True)


def with_sides(files: BackboneFiles, sides: Mapping[str, Path], backbone: Backbone) -> BackboneFiles:
    """The same with the files that lie beside the weights, once their bytes are the pinned ones.

    Raises IntegrityError, and as `describe_local`.
    """
    if not sides:
        return files
    told = {name: describe_local(path, name).sha256 or "" for name, path in sides.items()}
    found = sides_digest(told)
    if found != backbone.sides_sha256:
        raise IntegrityError(
            f"the files beside the weights of {backbone.source} ({', '.join(sorted(told))}) have digest {found}, and "
            f"{backbone.sides_sha256} is pinned; restore them, or pin the new ones if they are meant",
            field="spec.backbone.sides_sha256",
        )
    return replace(files, paths={**files.paths, **sides}, sha256={**files.sha256, **told})


def sides_in(folder: Path, backbone: Backbone) -> dict[str, Path]:
    """Files in the weights' folder that belong to them, by name. Raises PayloadTooLargeError.

    Only where a loader cannot do without: a lone file is not joined to whatever happens to lie beside it.
    """
    if backbone.loader != TRANSFORMERS:
        return {}
    sides = {name: folder / name for name in side_files(backbone) if (folder / name).is_file()}
    for name, path in sides.items():
        check_size(name, path.stat().st_size, side_files(backbone)[name])
    return sides


def verified_local(
    path: Path, name: str, backbone: Backbone, *, scheme: str, revision: str, progress: Progress
) -> BackboneFiles:
    """Hands a file over once its bytes are the pinned ones.

    Raises IntegrityError, ForbiddenFileError, SourceNotFoundError, PayloadTooLargeError.
    """
    check_pinned(backbone, scheme)
    size = _size_of_regular(path, name)
    progress(0, size)
    found = digests_of(path, lambda done: progress(done, size)).sha256
    if found != backbone.sha256:
        raise IntegrityError(
            f"{backbone.source} has sha256 {found}, and {backbone.sha256} is pinned; restore the file, or pin the new "
            "one if it is meant",
            field=FIELD_SHA256,
        )
    if backbone.format == "safetensors":
        check_safetensors(path)
    return BackboneFiles(source=backbone.source, revision=revision, paths={name: path}, sha256={name: found})


def _size_of_regular(path: Path, name: str) -> int:
    try:
        status = path.stat()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not a path"
        raise SourceNotFoundError(f"there is no readable file {path}: {reason}", field=FIELD_SOURCE) from None
    if not stat.S_ISREG(status.st_mode):
        # A pipe or device would block or never end.
        raise ForbiddenFileError(f"{path} is not a regular file; name the weights file itself", field=FIELD_SOURCE)
    check_size(name, status.st_size, MAX_WEIGHTS_BYTES)
    return status.st_size
