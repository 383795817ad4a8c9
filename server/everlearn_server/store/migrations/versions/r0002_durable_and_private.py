"""What a client has sent, what was promised about it, and what was taken out again.

Revision ID: 0002
Revises: 0001
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Adds columns to streams, and tables; what is there stays as it is."""
    with op.batch_alter_table("stream") as stream:
        stream.add_column(sa.Column("sample_count", sa.BigInteger(), nullable=False, server_default="0"))
        stream.add_column(sa.Column("first_commit", sa.Integer(), nullable=True))
        stream.add_column(sa.Column("contributes_since", sa.Integer(), nullable=True))
        stream.add_column(sa.Column("quarantined", sa.Boolean(), nullable=False, server_default="0"))
        stream.add_column(sa.Column("learned_mac", sa.LargeBinary(), nullable=True))
    # Who came before commits were noted has contributed since ever, whatever comes from now on.
    op.execute("UPDATE stream SET first_commit = 0, contributes_since = 0 WHERE durable_sequence > 0")
    with op.batch_alter_table("version") as version:
        version.add_column(sa.Column("commit_id", sa.Integer(), nullable=True))
    op.create_table(
        "moment",
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("commit_id", sa.Integer(), nullable=False),
        sa.Column("lineage", sa.Integer(), nullable=False),
        sa.Column("sample_count", sa.BigInteger(), nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("content", sa.LargeBinary(), nullable=True),
        sa.ForeignKeyConstraint(["model"], ["model.name"], name="fk_moment_model", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("model", "commit_id", name="pk_moment"),
    )
    op.create_table(
        "client_key",
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("client", sa.String(), nullable=False),
        sa.Column("sealed_key", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["model"], ["model.name"], name="fk_client_key_model", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("model", "client", name="pk_client_key"),
    )
    op.create_table(
        "client_sums",
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("client", sa.String(), nullable=False),
        sa.Column("sample_count", sa.BigInteger(), nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("content", sa.LargeBinary(), nullable=True),
        sa.ForeignKeyConstraint(["model"], ["model.name"], name="fk_client_sums_model", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("model", "client", name="pk_client_sums"),
    )
    op.create_table(
        "erasure",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("client", sa.String(), nullable=False),
        sa.Column("label", sa.Text(), nullable=False),
        sa.Column("sample_count", sa.BigInteger(), nullable=False),
        sa.Column("commit_id", sa.Integer(), nullable=False),
        sa.Column("create_time_s", sa.Float(), nullable=False),
        sa.Column("sequences_json", sa.Text(), nullable=False),
        sa.Column("receipt_json", sa.Text(), nullable=False),
        sa.Column("signature", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["model"], ["model.name"], name="fk_erasure_model", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name="pk_erasure"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_erasure_model_id", "erasure", ["model", "id"], unique=False)
    op.create_table(
        "download",
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("client", sa.String(), nullable=False),
        sa.Column("version_number", sa.Integer(), nullable=False),
        sa.Column("commit_id", sa.Integer(), nullable=True),
        sa.Column("update_time_s", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(["model"], ["model.name"], name="fk_download_model", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("model", "client", name="pk_download"),
    )
    op.create_table(
        "privacy_spend",
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("lineage", sa.Integer(), nullable=False),
        sa.Column("client", sa.String(), nullable=False),
        sa.Column("releases", sa.BigInteger(), nullable=False),
        sa.Column("rho", sa.Float(), nullable=False),
        sa.Column("update_time_s", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(["model"], ["model.name"], name="fk_privacy_spend_model", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("model", "lineage", "client", name="pk_privacy_spend"),
    )
