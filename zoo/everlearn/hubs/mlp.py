"""`mlp:128x64`: no source at all, for small networks over tensors whose weights are drawn from a seed."""

from __future__ import annotations

from typing import ClassVar

from everlearn.errors import SpecError
from everlearn.hubs.base import Hub, Progress, Resolved
from everlearn.spec import rules
from everlearn.spec.model import Backbone
from everlearn.values import BackboneFiles


class Mlp(Hub):
    """Has no files: the source is all of the network's structure, and its loader draws the weights."""

    scheme: ClassVar[str] = rules.MLP

    def resolve(self, backbone: Backbone) -> Resolved:
        """No file. Raises SpecError for a source that names no layers."""
        _check(backbone)
        return Resolved(revision="", files=())

    def fetch(self, backbone: Backbone, progress: Progress) -> BackboneFiles:
        """No file. Raises SpecError as `resolve`."""
        _check(backbone)
        return BackboneFiles(source=backbone.source, revision="", paths={}, sha256={})


def _check(backbone: Backbone) -> None:
    try:
        rules.mlp_widths(backbone.source)
    except ValueError as error:
        raise SpecError(str(error), field="spec.backbone.source") from error
