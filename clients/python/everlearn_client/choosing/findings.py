"""What a check found: how bad it is, in a sentence with figures, and what to do about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class Level(StrEnum):
    """How bad it is."""

    OK = "ok"
    WARN = "warn"
    """May be right; look at it."""
    BAD = "bad"
    """Mend this first."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One check: what was found and what to do about it."""

    check: str
    level: Level
    found: str
    """A sentence with figures."""
    advice: str = ""
    """What to do; empty where nothing is to be done."""
    figures: Mapping[str, float] = field(default_factory=dict)


def ok(check: str, found: str, figures: Mapping[str, float]) -> Finding:
    """Nothing is to be done."""
    return Finding(check=check, level=Level.OK, found=found, figures=figures)


def warn(check: str, found: str, advice: str, figures: Mapping[str, float]) -> Finding:
    """May be right."""
    return Finding(check=check, level=Level.WARN, found=found, advice=advice, figures=figures)


def bad(check: str, found: str, advice: str, figures: Mapping[str, float]) -> Finding:
    """To be mended first."""
    return Finding(check=check, level=Level.BAD, found=found, advice=advice, figures=figures)
