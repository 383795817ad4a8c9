"""What the store hands out and takes in: frozen values, so that no database type leaves this package.

Times are seconds since the Unix epoch; nothing is ordered or deduplicated by them. Digests are lower-case sha256 hex.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class ModelRow:
    """One declared model and where it stands."""

    name: str
    uid: str
    """Never used again, even when a deleted model's name is."""
    lineage: int
    """Raised when a revision replaces what was learned; the store then drops the memory of the lineage before."""
    declaration: str
    """The completed YAML."""
    generation: int
    """Raised with every accepted change of the declaration."""
    etag: str = ""
    """Given by the store; whatever a caller writes here is ignored."""
    state: str
    conditions_json: str
    lock_json: str
    trunk_digest: str | None
    promotion_paused: bool
    create_time_s: float
    update_time_s: float


@dataclass(frozen=True, kw_only=True)
class VersionSummary:
    """One immutable version without the bytes of its head: what a listing needs."""

    model: str
    number: int
    """Never reused within a model's life."""
    lineage: int
    labels_json: str
    metrics_json: str
    trunk_digest: str
    memory_digest: str
    """Of the memory that the head was solved from; provenance, not a reference: that memory may be gone."""
    sample_count: int
    gate_passed: bool
    gate_reason: str
    create_time_s: float


@dataclass(frozen=True, kw_only=True)
class VersionRow(VersionSummary):
    """One immutable version with its head, serialised by the caller."""

    head: bytes


@dataclass(frozen=True, kw_only=True)
class AliasRow:
    """A pointer to a version, e.g. `stable`."""

    model: str
    alias: str
    number: int


@dataclass(frozen=True, kw_only=True)
class PromotionRow:
    """One move of an alias, and why."""

    id: int
    model: str
    alias: str
    number: int
    previous: int | None
    """The version it pointed to before; None for its first."""
    reason: str
    create_time_s: float


@dataclass(frozen=True, kw_only=True)
class OperationRow:
    """One long-running operation; `stage` is the last idempotent step that was finished."""

    name: str
    model: str
    kind: str
    request_json: str
    stage: str
    done: bool
    error_json: str | None
    result_json: str | None
    create_time_s: float
    update_time_s: float


@dataclass(frozen=True, kw_only=True)
class ExportFile:
    """One file of an export; its bytes are the blob `sha256`."""

    file_name: str
    """Shown to people and never used as a path here."""
    size: int
    """Bytes."""
    sha256: str


@dataclass(frozen=True, kw_only=True)
class ExportRow:
    """The released files of one version."""

    model: str
    version_number: int
    files: tuple[ExportFile, ...]
    parity: float
    """Largest difference of a score from the server's, on the probes."""
    probes: int
    create_time_s: float


@dataclass(frozen=True, kw_only=True)
class TrunkRow:
    """One built trunk; its ONNX bytes are the blob `digest`."""

    key: str
    """Hash of the source files, the front and the bits: what the build depends on."""
    digest: str
    manifest: bytes
    source: str
    size: int
    """Bytes of the ONNX file."""


@dataclass(frozen=True, kw_only=True)
class StreamRow:
    """How far one client has been learned from."""

    epoch: int
    """Of the newest connection; the ones before it are fenced."""
    durable_sequence: int
    """Every batch up to here has had its effect, or its rejection, committed; 0 before the first."""


@dataclass(frozen=True, kw_only=True)
class RejectRow:
    """A batch that was refused for good: its sequence is spent, its content had no effect."""

    client: str
    sequence: int
    code: str
    field: str
    """Path of the offending field, never a value."""


@dataclass(frozen=True, kw_only=True)
class MemoryRow:
    """What stands beside a model's memory; the bytes come from `Ledger.memory`."""

    model: str
    lineage: int
    commit_id: int
    """The commit that wrote it."""
    digest: str
    size: int
    """Bytes."""
    sample_count: int
    prequential_json: str
    update_time_s: float


@dataclass(frozen=True, kw_only=True)
class CommitRow:
    """One line of the commit log: counts only, no payload and no hash of one."""

    id: int
    model: str
    parent: int | None
    """The commit before it; None for the first of a lineage."""
    lineage: int
    memory_digest: str
    sample_count: int
    stream_count: int
    """Clients whose watermark moved."""
    reject_count: int
    version: int | None
    create_time_s: float


@dataclass(frozen=True, kw_only=True)
class Commit:
    """Everything that one group commit makes durable together, or not at all."""

    model: str
    uid: str
    """`ModelRow.uid`: a writer that outlived its model must not write into a namesake."""
    lineage: int
    timeline: str
    """`Store.timeline` as the writer's clients know it."""
    memory: bytes
    """The whole memory after the group."""
    sample_count: int
    """In the memory, after the group."""
    streams: Mapping[str, StreamRow]
    """Client -> the epoch its newest batch in the group came with, and the last sequence integrated or rejected."""
    prequential_json: str
    rejects: Sequence[RejectRow] = ()
    version: VersionRow | None = None
    """A version solved from this memory, if there is one; its number comes from `Catalog.reserve_versions`."""
    aliases: Mapping[str, int] = field(default_factory=dict)
    """Aliases that move with the commit -> version number."""


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """What a commit cost; the writer spaces its groups by it."""

    commit_id: int
    duration_s: float
    """On the store's thread, hashing and checkpoints included, waiting for the thread not."""
    bytes_written: int
    """Memory and head; the write-ahead log doubles what is inline."""
