"""Each move of an alias has a number that only grows: a device that has seen one takes no older one.

Revision ID: 0003
Revises: 0002
"""

from __future__ import annotations

import time

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Adds a column; aliases were last moved now."""
    with op.batch_alter_table("alias") as alias:
        alias.add_column(sa.Column("moved", sa.BigInteger(), nullable=False, server_default="0"))
    op.execute(sa.text("UPDATE alias SET moved = :now").bindparams(now=int(time.time() * 1000)))
