"""What is drawn of a generation: its modes, its errors, its quality frame by frame."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Makes the table of details."""
    op.create_table(
        "scope_generation_detail",
        sa.Column(
            "generation_id",
            sa.Integer,
            sa.ForeignKey("scope_generation.id", ondelete="CASCADE"),
            primary_key=True,
            autoincrement=False,
        ),
        sa.Column("detail", sa.JSON, nullable=False),
    )
