"""What was found damaged since the start, until it is whole again: for log, metrics, health and a model's status.

Bytes that do not match their digest are never used. What else there is goes on serving, and an operator is told.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import structlog

from everlearn.errors import DataLossError

_logger = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class Damage:
    """One thing that cannot be used."""

    kind: str
    """`memory`, `version`, `trunk` or `export`."""
    model: str
    name: str
    """Of the thing among others of its kind: a version's number; empty where a model has one."""
    message: str


class Damages:
    """Event loop only, but reading."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str, str], Damage] = {}
        self.changed: Callable[[bool], None] = lambda intact: None
        """Called when the first is found, and when the last is gone."""

    def found(self, kind: str, model: str, error: DataLossError, *, name: str = "") -> None:
        """Tells it once, loudly."""
        key = (kind, model, name)
        if key not in self._known:
            _logger.critical("DATA_LOSS", kind=kind, model=model, name=name, message=error.message)
        self._known[key] = Damage(kind=kind, model=model, name=name, message=error.message)
        self.changed(False)

    def gone(self, model: str, *, kind: str = "", name: str = "") -> None:
        """It is whole again, or deleted: all of a model, of a kind, or one thing."""
        wanted = (kind, model, name)
        mended = [key for key in self._known if all(w in ("", k) for k, w in zip(key, wanted, strict=True))]
        for key in mended:
            del self._known[key]
        if mended and not self._known:
            self.changed(True)

    def of(self, model: str) -> list[Damage]:
        """What is damaged of a model."""
        return [damage for damage in self._known.values() if damage.model == model]

    @property
    def counts(self) -> Mapping[tuple[str, str], int]:
        """(model, kind) -> how many."""
        return Counter((damage.model, damage.kind) for damage in list(self._known.values()))
