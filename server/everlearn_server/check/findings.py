"""What a check finds, in words."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

Severity = Literal["damage", "note"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that is not as it must be, or (`note`) that an operator may want to know."""

    severity: Severity
    where: str
    """`model digits, version 12`: from the whole to the part."""
    problem: str
    """What was found, and what may help."""


@dataclass(frozen=True, kw_only=True)
class ModelSummary:
    """What is kept of a model."""

    name: str
    samples: int
    classes: int
    commit: int
    """Id of the last one; 0 before the first."""
    clients: int
    versions: int
    exports: int


@dataclass(kw_only=True)
class Report:
    """All that was looked at, and found."""

    folder: str
    revision: str = ""
    timeline: str = ""
    blobs: int = 0
    blob_bytes: int = 0
    models: list[ModelSummary] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    def damage(self, where: str, problems: str | Iterable[str]) -> None:
        """Adds what is damaged."""
        self._add("damage", where, problems)

    def note(self, where: str, problems: str | Iterable[str]) -> None:
        """Adds what is worth knowing."""
        self._add("note", where, problems)

    @property
    def damaged(self) -> list[Finding]:
        """Findings that are more than notes."""
        return [finding for finding in self.findings if finding.severity == "damage"]

    def _add(self, severity: Severity, where: str, problems: str | Iterable[str]) -> None:
        told = [problems] if isinstance(problems, str) else problems
        self.findings += [Finding(severity=severity, where=where, problem=problem) for problem in told]
