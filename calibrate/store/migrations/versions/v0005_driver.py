"""One process runs a study: who it is, in place of workers and what they claimed."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Drops workers and claims, and makes the driver's table."""
    op.drop_table("scope_claim")
    op.drop_table("scope_worker")
    op.create_table(
        "scope_driver",
        sa.Column(
            "study_id",
            sa.Integer,
            sa.ForeignKey("scope_study.id", ondelete="CASCADE"),
            primary_key=True,
            autoincrement=False,
        ),
        sa.Column("host", sa.Text, nullable=False),
        sa.Column("process", sa.Integer, nullable=False),
        sa.Column("state", sa.JSON, nullable=False),
        sa.Column("seen", sa.DateTime(timezone=True), nullable=False),
    )
