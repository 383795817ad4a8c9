"""`folder:/path/to/file`: a weights file that lies on the server's own disk, pinned by its sha256."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from everlearn.errors import SpecError
from everlearn.hubs._local import FIELD_SOURCE, describe_local, sides_in, verified_local, with_sides
from everlearn.hubs._policy import check_weights_name
from everlearn.hubs.base import Hub, Progress, Resolved
from everlearn.spec.model import Backbone
from everlearn.values import BackboneFiles


class Folder(Hub):
    """Reads the file where it lies and copies nothing."""

    scheme: ClassVar[str] = "folder"

    def resolve(self, backbone: Backbone) -> Resolved:
        """Size and sha256 of the file.

        Raises SourceNotFoundError, ForbiddenFileError, SpecError.
        """
        path = _path_of(backbone)
        sides = sides_in(path.parent, backbone)
        files = {path.name: path, **sides}
        return Resolved(revision="", files=tuple(describe_local(each, name) for name, each in files.items()))

    def fetch(self, backbone: Backbone, progress: Progress) -> BackboneFiles:
        """The file, if its bytes are the pinned ones.

        Raises IntegrityError, SourceNotFoundError, ForbiddenFileError, SpecError.
        """
        path = _path_of(backbone)
        files = verified_local(path, path.name, backbone, scheme=self.scheme, revision="", progress=progress)
        return with_sides(files, sides_in(path.parent, backbone), backbone)


def _path_of(backbone: Backbone) -> Path:
    path = Path(backbone.source.removeprefix("folder:"))
    if not path.is_absolute() or ".." in path.parts:
        raise SpecError(
            f"{backbone.source!r} must name an absolute path without '..', e.g. folder:/models/trunk.onnx",
            field=FIELD_SOURCE,
        )
    for value, key in ((backbone.revision, "revision"), (backbone.file, "file")):
        if value is not None:
            raise SpecError(
                f"a folder source has no {key}; leave it out, `sha256` pins the file", field=f"spec.backbone.{key}"
            )
    # By name before anything is opened: a spec must not be able to ask what an arbitrary file contains.
    check_weights_name(path.name, backbone)
    return path
