"""How the tests of the Hugging Face hub call it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.local_hub import LocalHub

from everlearn.hubs import hub_for
from everlearn.hubs.base import Hub, HubSettings
from everlearn.spec.model import Backbone
from everlearn.values import BackboneFiles

REPO = "timm/lite0"
SOURCE = f"hf://{REPO}"
TOKEN = "hf_secretsecretsecret"

FETCH = """
import sys
from pathlib import Path
from everlearn.hubs import hub_for
from everlearn.hubs.base import HubSettings
from everlearn.spec.model import Backbone
url, cache, revision = sys.argv[1:]
hub = hub_for(Backbone(source="hf://timm/lite0"), HubSettings(cache=Path(cache), endpoint=url))
hub.fetch(Backbone(source="hf://timm/lite0", revision=revision), lambda done, total: None)
"""


def hub_at(local: LocalHub | str, cache: Path, **settings: Any) -> Hub:
    url = local if isinstance(local, str) else local.url
    return hub_for(Backbone(source=SOURCE), HubSettings(cache=cache, endpoint=url, **settings))


def declared(**fields: Any) -> Backbone:
    """Not validated: a hub refuses by itself what a declaration would refuse too."""
    return Backbone(source=SOURCE).model_copy(update=fields)


def fetch(hub: Hub, commit: str | None, **fields: Any) -> BackboneFiles:
    return hub.fetch(declared(revision=commit, **fields), lambda done, total: None)


def parts(cache: Path) -> list[Path]:
    return list(cache.rglob("*.part"))
