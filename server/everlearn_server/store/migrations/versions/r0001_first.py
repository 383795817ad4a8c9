"""Everything the first release keeps.

Revision ID: 0001
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Creates all tables."""
    op.create_table(
        "model",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("uid", sa.String(), nullable=False),
        sa.Column("lineage", sa.Integer(), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("etag", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("trunk_digest", sa.String(), nullable=True),
        sa.Column("promotion_paused", sa.Boolean(), nullable=False),
        sa.Column("create_time_s", sa.Float(), nullable=False),
        sa.Column("update_time_s", sa.Float(), nullable=False),
        sa.Column("next_version", sa.Integer(), nullable=False),
        sa.Column("conditions_json", sa.Text(), nullable=False),
        sa.Column("lock_json", sa.Text(), nullable=False),
        sa.Column("declaration", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_model"),
    )
    op.create_table(
        "timeline",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("value", sa.String(), nullable=False),
        sa.Column("create_time_s", sa.Float(), nullable=False),
        sa.CheckConstraint("id = 1", name="ck_timeline_single"),
        sa.PrimaryKeyConstraint("id", name="pk_timeline"),
    )
    op.create_table(
        "trunk",
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("manifest", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("key", name="pk_trunk"),
    )
    op.create_index("ix_trunk_digest", "trunk", ["digest"], unique=False)
    op.create_table(
        "commit_log",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("parent", sa.Integer(), nullable=True),
        sa.Column("lineage", sa.Integer(), nullable=False),
        sa.Column("memory_digest", sa.String(), nullable=False),
        sa.Column("sample_count", sa.BigInteger(), nullable=False),
        sa.Column("stream_count", sa.Integer(), nullable=False),
        sa.Column("reject_count", sa.Integer(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=True),
        sa.Column("create_time_s", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(["model"], ["model.name"], name="fk_commit_log_model", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name="pk_commit_log"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_commit_log_model_id", "commit_log", ["model", "id"], unique=False)
    op.create_table(
        "memory",
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("lineage", sa.Integer(), nullable=False),
        sa.Column("commit_id", sa.Integer(), nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("sample_count", sa.BigInteger(), nullable=False),
        sa.Column("update_time_s", sa.Float(), nullable=False),
        sa.Column("prequential_json", sa.Text(), nullable=False),
        sa.Column("content", sa.LargeBinary(), nullable=True),
        sa.ForeignKeyConstraint(["model"], ["model.name"], name="fk_memory_model", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("model", name="pk_memory"),
    )
    op.create_table(
        "operation",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("stage", sa.String(), nullable=False),
        sa.Column("done", sa.Boolean(), nullable=False),
        sa.Column("create_time_s", sa.Float(), nullable=False),
        sa.Column("update_time_s", sa.Float(), nullable=False),
        sa.Column("request_json", sa.Text(), nullable=False),
        sa.Column("error_json", sa.Text(), nullable=True),
        sa.Column("result_json", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(["model"], ["model.name"], name="fk_operation_model", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name="pk_operation"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_operation_model_id", "operation", ["model", "id"], unique=False)
    op.create_index("ix_operation_name", "operation", ["name"], unique=True)
    op.create_table(
        "promotion",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("alias", sa.String(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("previous", sa.Integer(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("create_time_s", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(["model"], ["model.name"], name="fk_promotion_model", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name="pk_promotion"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_promotion_model_id", "promotion", ["model", "id"], unique=False)
    op.create_table(
        "reject",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("client", sa.String(), nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("code", sa.String(), nullable=False),
        sa.Column("field", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["model"], ["model.name"], name="fk_reject_model", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name="pk_reject"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_reject_model_id", "reject", ["model", "id"], unique=False)
    op.create_table(
        "stream",
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("client", sa.String(), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("durable_sequence", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["model"], ["model.name"], name="fk_stream_model", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("model", "client", name="pk_stream"),
    )
    op.create_table(
        "version",
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("lineage", sa.Integer(), nullable=False),
        sa.Column("trunk_digest", sa.String(), nullable=False),
        sa.Column("memory_digest", sa.String(), nullable=False),
        sa.Column("sample_count", sa.BigInteger(), nullable=False),
        sa.Column("gate_passed", sa.Boolean(), nullable=False),
        sa.Column("gate_reason", sa.Text(), nullable=False),
        sa.Column("create_time_s", sa.Float(), nullable=False),
        sa.Column("metrics_json", sa.Text(), nullable=False),
        sa.Column("labels_json", sa.Text(), nullable=False),
        sa.Column("head_digest", sa.String(), nullable=False),
        sa.Column("head", sa.LargeBinary(), nullable=True),
        sa.ForeignKeyConstraint(["model"], ["model.name"], name="fk_version_model", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("model", "number", name="pk_version"),
    )
    op.create_index("ix_version_head_digest", "version", ["head_digest"], unique=False)
    op.create_index("ix_version_trunk_digest", "version", ["trunk_digest"], unique=False)
    op.create_table(
        "alias",
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("alias", sa.String(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["model", "number"], ["version.model", "version.number"], name="fk_alias_model_number"),
        sa.ForeignKeyConstraint(["model"], ["model.name"], name="fk_alias_model", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("model", "alias", name="pk_alias"),
    )
    op.create_table(
        "export",
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("version_number", sa.Integer(), nullable=False),
        sa.Column("parity", sa.Float(), nullable=False),
        sa.Column("probes", sa.Integer(), nullable=False),
        sa.Column("create_time_s", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(
            ["model", "version_number"],
            ["version.model", "version.number"],
            name="fk_export_model_version_number",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("model", "version_number", name="pk_export"),
    )
    op.create_table(
        "export_file",
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("version_number", sa.Integer(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("file_name", sa.String(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(
            ["model", "version_number"],
            ["export.model", "export.version_number"],
            name="fk_export_file_model_version_number",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("model", "version_number", "position", name="pk_export_file"),
    )
    op.create_index("ix_export_file_sha256", "export_file", ["sha256"], unique=False)
