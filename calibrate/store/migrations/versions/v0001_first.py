"""The tables as they were before there were migrations."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_MEASURED_ONCE = "state = 'complete' AND kind IN ('stock', 'exact', 'candidate')"
_UTC = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Makes studies, environments, generations and profiles."""
    op.create_table(
        "scope_study",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("name", sa.String(200), nullable=False, unique=True),
        sa.Column("yaml_text", sa.Text, nullable=False),
        sa.Column("fixed_digest", sa.String(16), nullable=False),
        sa.Column("fixed_parts", sa.JSON, nullable=False),
        sa.Column("settings", sa.JSON, nullable=False),
        sa.Column("model", sa.JSON, nullable=False),
        sa.Column("created", _UTC, nullable=False),
    )
    op.create_table(
        "scope_environment",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("digest", sa.String(16), nullable=False, unique=True),
        sa.Column("hardware", sa.JSON, nullable=False),
        sa.Column("versions", sa.JSON, nullable=False),
    )
    op.create_table(
        "scope_generation",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column(
            "study_id", sa.Integer, sa.ForeignKey("scope_study.id", ondelete="CASCADE"), nullable=False, index=True
        ),
        sa.Column("environment_id", sa.Integer, sa.ForeignKey("scope_environment.id"), nullable=False),
        sa.Column("kind", sa.String(20), nullable=False),
        sa.Column("trial_number", sa.Integer),
        sa.Column("prompt", sa.Text, nullable=False),
        sa.Column("prompt_digest", sa.String(16), nullable=False),
        sa.Column("seed", sa.Integer, nullable=False),
        sa.Column("policy", sa.JSON),
        sa.Column("policy_digest", sa.String(16), nullable=False),
        sa.Column("settings", sa.JSON, nullable=False),
        sa.Column("evaluations", sa.Integer),
        sa.Column("stock_evaluations", sa.Integer),
        sa.Column("seconds_denoise", sa.Double),
        sa.Column("seconds_decode", sa.Double),
        sa.Column("seconds_end_to_end", sa.Double),
        sa.Column("stock_seconds_denoise", sa.Double),
        sa.Column("metrics", sa.JSON),
        sa.Column("state", sa.String(10), nullable=False),
        sa.Column("reason", sa.Text),
        sa.Column("started", _UTC, nullable=False),
        sa.Column("finished", _UTC, nullable=False),
    )
    op.create_index(
        "ux_scope_generation_measured_once",
        "scope_generation",
        ["study_id", "kind", "policy_digest", "prompt_digest", "seed"],
        unique=True,
        sqlite_where=sa.text(_MEASURED_ONCE),
        postgresql_where=sa.text(_MEASURED_ONCE),
    )
    op.create_index("ix_scope_generation_trial", "scope_generation", ["study_id", "trial_number"])
    op.create_table(
        "scope_profile",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column(
            "study_id", sa.Integer, sa.ForeignKey("scope_study.id", ondelete="CASCADE"), nullable=False, index=True
        ),
        sa.Column("trial_number", sa.Integer, nullable=False),
        sa.Column("rule", sa.String(20), nullable=False),
        sa.Column("path", sa.Text, nullable=False),
        sa.Column("profile", sa.JSON, nullable=False),
        sa.Column("created", _UTC, nullable=False),
    )
    op.create_table("scope_schema", sa.Column("version", sa.Integer, primary_key=True, autoincrement=False))
