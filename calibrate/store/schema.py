"""Bringing the tables of a database to the form that this program knows."""

from __future__ import annotations

from sqlalchemy import Connection, column, inspect, select, table

# Optuna keeps its own `alembic_version` in the same database.
VERSION_TABLE = "scope_version"
# The revision of `calibrate.store.models`.
REVISION = "0005"

_VERSION = table(VERSION_TABLE, column("version_num"))


class NewerSchema(Exception):
    """The database was written by a newer program; carries the revision it is at."""


def revision_of(connection: Connection) -> str | None:
    """The revision that a database is at; None if it holds no tables of ours.

    Databases from before there were migrations count as the first revision.
    """
    tables = inspect(connection)
    if tables.has_table(VERSION_TABLE):
        return connection.scalar(select(_VERSION.c.version_num))
    return "0001" if tables.has_table("scope_schema") else None


def upgrade(connection: Connection) -> None:
    """Migrates to `REVISION` within the connection's transaction.

    Raises:
        NewerSchema: If the database is at a revision that is not known here.
    """
    # Most databases are up to date, and loading Alembic takes longer than finding that out.
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", "calibrate.store:migrations")
    config.attributes["connection"] = connection
    current = revision_of(connection)
    if current is not None:
        if current not in {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}:
            raise NewerSchema(current)
        if not inspect(connection).has_table(VERSION_TABLE):
            command.stamp(config, current)
    command.upgrade(config, "head")
