"""Several workers on one study: who works, who does what; and indexes for large studies."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_UTC = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Makes workers and claims, widens seeds, and drops the version row that Alembic's replaces."""
    op.create_table(
        "scope_worker",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column(
            "study_id", sa.Integer, sa.ForeignKey("scope_study.id", ondelete="CASCADE"), nullable=False, index=True
        ),
        sa.Column("started", _UTC, nullable=False),
        sa.Column("seen", _UTC, nullable=False),
        sa.Column("finished", _UTC),
    )
    op.create_table(
        "scope_claim",
        sa.Column("study_id", sa.Integer, sa.ForeignKey("scope_study.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("work", sa.String(80), primary_key=True),
        sa.Column(
            "worker_id", sa.Integer, sa.ForeignKey("scope_worker.id", ondelete="CASCADE"), nullable=False, index=True
        ),
        sa.Column("since", _UTC, nullable=False),
    )
    # Study files allow seeds of 63 bits, more than a plain integer of PostgreSQL holds.
    with op.batch_alter_table("scope_generation") as generation:
        generation.alter_column("seed", existing_type=sa.Integer, type_=sa.BigInteger, existing_nullable=False)
    op.create_index("ix_scope_generation_finished", "scope_generation", ["study_id", "finished"])
    op.create_index("ix_scope_generation_kind", "scope_generation", ["study_id", "kind", "state"])
    op.drop_table("scope_schema")
