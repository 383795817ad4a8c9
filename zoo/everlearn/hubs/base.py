"""What a hub is: a place that turns a pinned reference into verified files."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from everlearn.spec.model import Backbone
from everlearn.values import BackboneFiles

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes total); from any thread."""


@dataclass(frozen=True, kw_only=True)
class HubSettings:
    """What the composition root decides; hubs read no environment."""

    cache: Path
    """Folder for downloads; laid out as the hub's own client does, so that other tools find them."""
    endpoint: str | None = None
    """Other address of the Hugging Face hub (a mirror)."""
    token: str | None = None
    """For private and gated repositories. Never logged."""
    offline: bool = False
    """Use only what is cached."""


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """One file that a fetch would need."""

    name: str
    size_bytes: int
    """0 = unknown."""
    sha256: str | None
    """Where the hub tells it."""
    cached: bool


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """A reference, resolved to what it means now and for ever."""

    revision: str
    """Commit or version; empty for a folder."""
    files: tuple[RemoteFile, ...]

    def lock(self) -> Mapping[str, str]:
        """file -> sha256, for those known, and `revision`."""
        return {"revision": self.revision, **{file.name: file.sha256 for file in self.files if file.sha256}}


class Hub(ABC):
    """A source of pretrained files. One file in this folder each; found by its name."""

    scheme: ClassVar[str]
    """What a source begins with, e.g. `hf`."""

    def __init__(self, settings: HubSettings) -> None:
        self.settings = settings

    @abstractmethod
    def resolve(self, backbone: Backbone) -> Resolved:
        """Resolves the reference (a branch or tag too) without downloading weights.

        `cached` tells whether a file is here with the right size; `fetch` verifies its bytes.

        Raises SourceNotFoundError, AccessDeniedError, UnavailableError, ForbiddenFileError, PayloadTooLargeError.
        """

    @abstractmethod
    def fetch(self, backbone: Backbone, progress: Progress) -> BackboneFiles:
        """Files of a *pinned* reference, downloaded where needed, each verified against its sha256.

        Raises MovingReferenceError for a branch or tag, IntegrityError, ForbiddenFileError, SourceNotFoundError,
        AccessDeniedError, UnavailableError, PayloadTooLargeError, SpecError.
        """

    def configuration(self, backbone: Backbone) -> BackboneFiles:
        """The files that say what a backbone is, without its weights where they can be left where they are.

        For planning, which should not download a network to tell its input size. Raises as `fetch`.
        """
        return self.fetch(backbone, lambda done, total: None)
