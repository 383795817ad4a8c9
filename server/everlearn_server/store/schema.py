"""The tables, for SQLAlchemy Core. Migrations create them; a test holds the two equal.

Large columns stand last, because SQLite walks a row's pages from the front. A digest column with an empty bytes column
beside it means that the bytes are a blob; `references.py` lists every column that can keep a blob alive.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    TypedColumns,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

OWNER = "model.name"
"""Deleting a model takes every row that hangs on it along."""


class TimelineColumns(TypedColumns):
    """The history this folder belongs to; a restore begins another."""

    id = Column(Integer, primary_key=True)
    value = Column(String, nullable=False)
    create_time_s = Column(Float, nullable=False)


timeline = Table("timeline", metadata, TimelineColumns, CheckConstraint("id = 1", name="single"))


class ModelColumns(TypedColumns):
    """Declared models."""

    name = Column(String, primary_key=True)
    uid = Column(String, nullable=False)
    lineage = Column(Integer, nullable=False)
    generation = Column(Integer, nullable=False)
    etag = Column(String, nullable=False)
    state = Column(String, nullable=False)
    trunk_digest = Column(String)
    promotion_paused = Column(Boolean, nullable=False)
    create_time_s = Column(Float, nullable=False)
    update_time_s = Column(Float, nullable=False)
    next_version = Column(Integer, nullable=False)
    conditions_json = Column(Text, nullable=False)
    lock_json = Column(Text, nullable=False)
    declaration = Column(Text, nullable=False)


model = Table("model", metadata, ModelColumns)


class VersionColumns(TypedColumns):
    """Immutable versions; `head` is empty where the bytes are a blob."""

    model = Column(String, ForeignKey(OWNER, ondelete="CASCADE"), primary_key=True)
    number = Column(Integer, primary_key=True)
    lineage = Column(Integer, nullable=False)
    trunk_digest = Column(String, nullable=False)
    memory_digest = Column(String, nullable=False)
    sample_count = Column(BigInteger, nullable=False)
    gate_passed = Column(Boolean, nullable=False)
    gate_reason = Column(Text, nullable=False)
    create_time_s = Column(Float, nullable=False)
    commit_id = Column(Integer)
    metrics_json = Column(Text, nullable=False)
    labels_json = Column(Text, nullable=False)
    head_digest = Column(String, nullable=False)
    head = Column(LargeBinary)


version = Table("version", metadata, VersionColumns)
Index(None, version.c.trunk_digest)
Index(None, version.c.head_digest)


class AliasColumns(TypedColumns):
    """Pointers to versions."""

    model = Column(String, ForeignKey(OWNER, ondelete="CASCADE"), primary_key=True)
    alias = Column(String, primary_key=True)
    number = Column(Integer, nullable=False)
    moved = Column(BigInteger, nullable=False, server_default="0")


alias = Table(
    "alias", metadata, AliasColumns, ForeignKeyConstraint(["model", "number"], ["version.model", "version.number"])
)


class PromotionColumns(TypedColumns):
    """Moves of aliases, oldest first."""

    id = Column(Integer, primary_key=True)
    model = Column(String, ForeignKey(OWNER, ondelete="CASCADE"), nullable=False)
    alias = Column(String, nullable=False)
    number = Column(Integer, nullable=False)
    previous = Column(Integer)
    reason = Column(Text, nullable=False)
    create_time_s = Column(Float, nullable=False)


promotion = Table("promotion", metadata, PromotionColumns, sqlite_autoincrement=True)
Index(None, promotion.c.model, promotion.c.id)


class OperationColumns(TypedColumns):
    """Long-running operations. `id` is their order of arrival."""

    id = Column(Integer, primary_key=True)
    name = Column(String, nullable=False)
    model = Column(String, ForeignKey(OWNER, ondelete="CASCADE"), nullable=False)
    kind = Column(String, nullable=False)
    stage = Column(String, nullable=False)
    done = Column(Boolean, nullable=False)
    create_time_s = Column(Float, nullable=False)
    update_time_s = Column(Float, nullable=False)
    request_json = Column(Text, nullable=False)
    error_json = Column(Text)
    result_json = Column(Text)


operation = Table("operation", metadata, OperationColumns, sqlite_autoincrement=True)
Index(None, operation.c.name, unique=True)
Index(None, operation.c.model, operation.c.id)


class ExportColumns(TypedColumns):
    """Released exports, one a version."""

    model = Column(String, primary_key=True)
    version_number = Column(Integer, primary_key=True)
    parity = Column(Float, nullable=False)
    probes = Column(Integer, nullable=False)
    create_time_s = Column(Float, nullable=False)


export = Table(
    "export",
    metadata,
    ExportColumns,
    ForeignKeyConstraint(["model", "version_number"], ["version.model", "version.number"], ondelete="CASCADE"),
)


class ExportFileColumns(TypedColumns):
    """Files of exports, in their order."""

    model = Column(String, primary_key=True)
    version_number = Column(Integer, primary_key=True)
    position = Column(Integer, primary_key=True)
    file_name = Column(String, nullable=False)
    size = Column(BigInteger, nullable=False)
    sha256 = Column(String, nullable=False)


export_file = Table(
    "export_file",
    metadata,
    ExportFileColumns,
    ForeignKeyConstraint(["model", "version_number"], ["export.model", "export.version_number"], ondelete="CASCADE"),
)
Index(None, export_file.c.sha256)


class TrunkColumns(TypedColumns):
    """Built trunks: a cache that no model owns."""

    key = Column(String, primary_key=True)
    digest = Column(String, nullable=False)
    source = Column(Text, nullable=False)
    size = Column(BigInteger, nullable=False)
    manifest = Column(LargeBinary, nullable=False)


trunk = Table("trunk", metadata, TrunkColumns)
Index(None, trunk.c.digest)


class StreamColumns(TypedColumns):
    """One watermark a client and model. No payload hash: hashes of guessable data can be reversed."""

    model = Column(String, ForeignKey(OWNER, ondelete="CASCADE"), primary_key=True)
    client = Column(String, primary_key=True)
    epoch = Column(BigInteger, nullable=False)
    durable_sequence = Column(BigInteger, nullable=False)
    sample_count = Column(BigInteger, nullable=False, server_default="0")
    first_commit = Column(Integer)
    contributes_since = Column(Integer)
    quarantined = Column(Boolean, nullable=False, server_default="0")
    learned_mac = Column(LargeBinary)


stream = Table("stream", metadata, StreamColumns)


class MemoryColumns(TypedColumns):
    """One memory a model; `content` is empty where the bytes are a blob."""

    model = Column(String, ForeignKey(OWNER, ondelete="CASCADE"), primary_key=True)
    lineage = Column(Integer, nullable=False)
    commit_id = Column(Integer, nullable=False)
    digest = Column(String, nullable=False)
    size = Column(BigInteger, nullable=False)
    sample_count = Column(BigInteger, nullable=False)
    update_time_s = Column(Float, nullable=False)
    prequential_json = Column(Text, nullable=False)
    content = Column(LargeBinary)


memory = Table("memory", metadata, MemoryColumns)


class MomentColumns(TypedColumns):
    """What a model had learned at a commit after which a client contributed first, without features of single samples;
    `content` is empty where the bytes are a blob."""

    model = Column(String, ForeignKey(OWNER, ondelete="CASCADE"), primary_key=True)
    commit_id = Column(Integer, primary_key=True)
    lineage = Column(Integer, nullable=False)
    sample_count = Column(BigInteger, nullable=False)
    digest = Column(String, nullable=False)
    size = Column(BigInteger, nullable=False)
    content = Column(LargeBinary)


moment = Table("moment", metadata, MomentColumns)


class CommitColumns(TypedColumns):
    """The commit log."""

    id = Column(Integer, primary_key=True)
    model = Column(String, ForeignKey(OWNER, ondelete="CASCADE"), nullable=False)
    parent = Column(Integer)
    lineage = Column(Integer, nullable=False)
    memory_digest = Column(String, nullable=False)
    sample_count = Column(BigInteger, nullable=False)
    stream_count = Column(Integer, nullable=False)
    reject_count = Column(Integer, nullable=False)
    version = Column(Integer)
    create_time_s = Column(Float, nullable=False)


commit_log = Table("commit_log", metadata, CommitColumns, sqlite_autoincrement=True)
Index(None, commit_log.c.model, commit_log.c.id)


class RejectColumns(TypedColumns):
    """Batches that were refused for good."""

    id = Column(Integer, primary_key=True)
    model = Column(String, ForeignKey(OWNER, ondelete="CASCADE"), nullable=False)
    client = Column(String, nullable=False)
    sequence = Column(BigInteger, nullable=False)
    code = Column(String, nullable=False)
    field = Column(Text, nullable=False)


reject = Table("reject", metadata, RejectColumns, sqlite_autoincrement=True)
Index(None, reject.c.model, reject.c.id)


class ClientKeyColumns(TypedColumns):
    """A key for what is kept of one client, sealed under the folder's; without its row nothing of that opens again."""

    model = Column(String, ForeignKey(OWNER, ondelete="CASCADE"), primary_key=True)
    client = Column(String, primary_key=True)
    sealed_key = Column(LargeBinary, nullable=False)


client_key = Table("client_key", metadata, ClientKeyColumns)


class ClientSumsColumns(TypedColumns):
    """One client's own sums, sealed under its key, where a model declares to keep them."""

    model = Column(String, ForeignKey(OWNER, ondelete="CASCADE"), primary_key=True)
    client = Column(String, primary_key=True)
    sample_count = Column(BigInteger, nullable=False)
    digest = Column(String, nullable=False)
    size = Column(BigInteger, nullable=False)
    content = Column(LargeBinary)


client_sums = Table("client_sums", metadata, ClientSumsColumns)


class ErasureColumns(TypedColumns):
    """What was taken out again, and the signed receipt that says so. No payload."""

    id = Column(Integer, primary_key=True)
    model = Column(String, ForeignKey(OWNER, ondelete="CASCADE"), nullable=False)
    client = Column(String, nullable=False)
    label = Column(Text, nullable=False)
    sample_count = Column(BigInteger, nullable=False)
    commit_id = Column(Integer, nullable=False)
    create_time_s = Column(Float, nullable=False)
    sequences_json = Column(Text, nullable=False)
    receipt_json = Column(Text, nullable=False)
    signature = Column(LargeBinary, nullable=False)


erasure = Table("erasure", metadata, ErasureColumns, sqlite_autoincrement=True)
Index(None, erasure.c.model, erasure.c.id)


class DownloadColumns(TypedColumns):
    """What each client downloaded last; `client` is empty for all who gave no name. The version may be gone."""

    model = Column(String, ForeignKey(OWNER, ondelete="CASCADE"), primary_key=True)
    client = Column(String, primary_key=True)
    version_number = Column(Integer, nullable=False)
    commit_id = Column(Integer)
    update_time_s = Column(Float, nullable=False)


download = Table("download", metadata, DownloadColumns)


class PrivacySpendColumns(TypedColumns):
    """What of a model's budget has been spent on one client; `client` is empty for the model as a whole."""

    model = Column(String, ForeignKey(OWNER, ondelete="CASCADE"), primary_key=True)
    lineage = Column(Integer, primary_key=True)
    client = Column(String, primary_key=True)
    releases = Column(BigInteger, nullable=False)
    rho = Column(Float, nullable=False)
    update_time_s = Column(Float, nullable=False)


privacy_spend = Table("privacy_spend", metadata, PrivacySpendColumns)


class RolloutColumns(TypedColumns):
    """Which version is a canary, which are withdrawn and why. What devices reported is nowhere on the disk."""

    model = Column(String, ForeignKey(OWNER, ondelete="CASCADE"), primary_key=True)
    state_json = Column(Text, nullable=False)


rollout = Table("rollout", metadata, RolloutColumns)
