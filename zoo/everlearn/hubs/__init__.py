"""Hubs: places that turn a pinned reference into verified files. `hub_for` finds the one that a source names.

A new hub is one new file here: a class deriving `Hub` with a `scheme` of its own.
"""

from __future__ import annotations

import sys

from everlearn import plugins
from everlearn.errors import SpecError
from everlearn.hubs.base import Hub, HubSettings
from everlearn.spec.model import Backbone

FIELD = "spec.backbone.source"


def hub_for(backbone: Backbone, settings: HubSettings) -> Hub:
    """The hub that a backbone's source names, by what stands before its first colon.

    Raises SpecError, naming the known schemes, for any other.
    """
    scheme = backbone.source.partition(":")[0]
    known: list[str] = []
    # The hub whose file bears the scheme's name is asked first, so that `wheel:` never loads another hub's client.
    for kind in sorted(plugins.kinds(sys.modules[__name__]), key=lambda kind: kind != scheme):
        # type-abstract: mypy has no type for a class that may be abstract.
        hub = plugins.load(sys.modules[__name__], kind, Hub, field=FIELD)  # type: ignore[type-abstract]
        if hub.scheme == scheme:
            return hub(settings)
        known.append(f"{hub.scheme}:")
    raise SpecError(f"no hub serves {scheme!r} sources; known: {', '.join(sorted(known))}", field=FIELD)
