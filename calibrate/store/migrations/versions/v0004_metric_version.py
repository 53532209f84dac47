"""Which definition of the quality figures a generation was measured by, so that it can be measured by another one."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_INDEX = "ux_scope_generation_measured_once"
_MEASURED_ONCE = "state = 'complete' AND kind IN ('stock', 'exact', 'candidate')"


def upgrade() -> None:
    """Adds the version, the first one for figures that are there, and lets a measurement be made once per version."""
    op.add_column("scope_generation", sa.Column("metric_version", sa.Integer, nullable=False, server_default="0"))
    op.execute("UPDATE scope_generation SET metric_version = 1 WHERE kind IN ('candidate', 'held_out_scope')")
    op.drop_index(_INDEX, "scope_generation")
    op.create_index(
        _INDEX,
        "scope_generation",
        ["study_id", "kind", "policy_digest", "prompt_digest", "seed", "metric_version"],
        unique=True,
        sqlite_where=sa.text(_MEASURED_ONCE),
        postgresql_where=sa.text(_MEASURED_ONCE),
    )
