"""Where the versions of a model are on their way to its devices.

Revision ID: 0004
Revises: 0003
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Adds a table; what is there stays as it is."""
    op.create_table(
        "rollout",
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("state_json", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["model"], ["model.name"], name="fk_rollout_model", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("model", name="pk_rollout"),
    )
