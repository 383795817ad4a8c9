"""What the store hands out and takes in: frozen values, so that no database type leaves this package.

Times are seconds since the Unix epoch; nothing is ordered or deduplicated by them. Digests are lower-case sha256 hex.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from everlearn.export.precision import Precision


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
    commit_id: int | None = None
    """It knows nothing of later commits. 0: that is not known. None: of revision 0001, so of no commit since."""


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
    moved: int = 0
    """Of this move: more than that of any before it, over restores and deleted models, too. Devices go by it."""


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
    precision: Precision = "fp32"
    """Of a row from the catalog this says nothing: its files are of all precisions (`engine.precisions`)."""


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
    sample_count: int = 0
    """Of its samples, those learned."""
    first_commit: int | None = None
    """The first commit that its batches were in; None before that, and for streams of revision 0001."""
    quarantined: bool = False
    """Nothing of it is learned any more."""
    learned_mac: bytes | None = None
    """32 bytes, the sum of what `engine.receipts` makes of each batch that was learned; None for streams of revision
    0001, of which that is not known."""


@dataclass(frozen=True, kw_only=True)
class RejectRow:
    """A batch that was refused for good: its sequence is spent, its content had no effect."""

    client: str
    sequence: int
    code: str
    field: str
    """Path of the offending field, never a value."""


@dataclass(frozen=True, kw_only=True)
class SpendRow:
    """What of a budget of differential privacy has been spent on one client within one lineage."""

    client: str
    """Empty for the model as a whole: all releases, and the most that was spent on any one."""
    releases: int
    rho: float
    """Zero-concentrated DP; see `everlearn.privacy.accountant`."""
    lineage: int


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
class DownloadRow:
    """What one client downloaded last."""

    client: str
    """Empty for all who gave no name."""
    version_number: int
    """May be gone by now."""
    update_time_s: float


@dataclass(frozen=True, kw_only=True)
class Erasing:
    """What a commit takes out besides: the memory that it brings is without it already."""

    client: str
    """Empty where a class is taken out."""
    label: str
    sample_count: int
    sequences: Sequence[tuple[int, int]]
    """First and last sequence of each range."""
    stream: StreamRow | None
    """What is left of the client's: samples, and its `learned_mac`."""
    is_whole: bool
    """Whether nothing of the client is left."""
    since_commit: int | None
    """Versions of this commit or later go; None: all."""
    attest: Callable[[int, Sequence[int], Sequence[DownloadRow]], tuple[str, bytes]]
    """(commit, versions that went, who last downloaded one that contained it) -> receipt as JSON, signature."""


@dataclass(frozen=True, kw_only=True)
class ErasureRow:
    """What was taken out, and the signed receipt."""

    id: int
    model: str
    client: str
    label: str
    sample_count: int
    commit_id: int
    create_time_s: float
    sequences_json: str
    """[[first, last], ...]"""
    receipt_json: str
    signature: bytes


@dataclass(frozen=True, kw_only=True)
class ClientSumsRow:
    """One client's own sums after a group, sealed; what is not inline is a blob that its maker holds until then."""

    client: str
    sample_count: int
    digest: str
    """Of the sealed bytes."""
    size: int
    content: bytes | None


@dataclass(frozen=True, kw_only=True)
class Keeping:
    """Earlier moments of a memory are kept: each from before some client's first contribution."""

    most: int
    """Of a model; beyond it they are thinned."""
    made_of: Callable[[bytes], bytes]
    """Memory -> what of it may be kept. Raises DataLossError."""


@dataclass(frozen=True, kw_only=True)
class Moment:
    """What a model had learned at a commit."""

    commit_id: int
    sample_count: int
    data: bytes


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
    spends: Sequence[SpendRow] = ()
    """What has been spent in all on those whom this group's noise hides, once the group is in."""
    version: VersionRow | None = None
    """A version solved from this memory, if there is one; its number comes from `Catalog.reserve_versions`."""
    aliases: Mapping[str, int] = field(default_factory=dict)
    """Aliases that move with the commit -> version number."""
    erasing: Erasing | None = None
    client_sums: Sequence[ClientSumsRow] = ()
    """Of the clients that this group changes, where a model keeps each one's own."""
    keeping: Keeping | None = None


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """What a commit cost; the writer spaces its groups by it."""

    commit_id: int
    busy_s: float
    """In which it kept the disk busy, or the processor: statements by what they computed, for their thread also waits
    until others let go of the interpreter, and what goes to the disk goes there with COMMIT."""
    bytes_written: int
    """Memory, head and clients' own sums; the write-ahead log doubles what is inline."""
    erased: ErasureRow | None = None
    withdrawn: Sequence[int] = ()
    """Versions that went with an erasure."""
