"""`identity`: no source at all, for models that learn from the values themselves."""

from __future__ import annotations

from typing import ClassVar

from everlearn.errors import SpecError
from everlearn.hubs.base import Hub, Progress, Resolved
from everlearn.spec.model import Backbone
from everlearn.values import BackboneFiles


class Identity(Hub):
    """Has no files, so there is nothing to pin, to fetch or to distrust."""

    scheme: ClassVar[str] = "identity"

    def resolve(self, backbone: Backbone) -> Resolved:
        """No file. Raises SpecError for a source with anything behind the word."""
        _check(backbone)
        return Resolved(revision="", files=())

    def fetch(self, backbone: Backbone, progress: Progress) -> BackboneFiles:
        """No file. Raises SpecError as `resolve`."""
        _check(backbone)
        return BackboneFiles(source=backbone.source, revision="", paths={}, sha256={})


def _check(backbone: Backbone) -> None:
    if backbone.source != "identity":
        raise SpecError("the identity has no files; write source: identity", field="spec.backbone.source")
