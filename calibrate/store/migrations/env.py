"""What Alembic runs: the migrations on the connection that `calibrate.store.schema` hands over."""

from __future__ import annotations

from alembic import context

from calibrate.store.schema import VERSION_TABLE

context.configure(
    connection=context.config.attributes["connection"],
    version_table=VERSION_TABLE,
    # SQLite cannot alter a table in place.
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
