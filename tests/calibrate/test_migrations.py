"""Databases of earlier programs, kept as they were written, are brought up to date when they are opened."""

from __future__ import annotations

import itertools
import json
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, event, text

from calibrate.store import Storage
from calibrate.store.models import Base
from calibrate.store.schema import REVISION, VERSION_TABLE
from tests.calibrate.conftest import Workplace

OLD_DATABASES = sorted((Path(__file__).parent / "data").glob("revision-*.sql"))


def _differences(storage: Storage) -> list[object]:
    """What the models have other than the tables."""
    with storage.engine.connect() as connection:
        options = {
            "compare_type": True,
            "include_name": lambda name, kind, _: kind != "table" or name in Base.metadata.tables,
        }
        return compare_metadata(MigrationContext.configure(connection, opts=options), Base.metadata)


def test_the_newest_migration_is_the_one_that_the_program_knows() -> None:
    config = Config()
    config.set_main_option("script_location", "calibrate.store:migrations")
    assert ScriptDirectory.from_config(config).get_current_head() == REVISION


def test_a_new_database_has_just_the_tables_of_the_models(storage: Storage) -> None:
    assert _differences(storage) == []


def _open_but_die(url: str, statement: int) -> None:
    """Opens a database in a process that ends, without any farewell, before so manieth change of its tables."""
    changes = itertools.count()

    def die(_c: object, _cursor: object, sql: str, *_rest: object) -> None:
        if sql.lstrip().startswith(("CREATE", "DROP", "ALTER")) and next(changes) == statement:
            os._exit(9)

    child = os.fork()
    if child == 0:
        try:
            event.listen(Engine, "before_cursor_execute", die)
            Storage(url)
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


@pytest.mark.parametrize("statement", [2, 9])
def test_a_process_that_dies_while_it_makes_the_tables_leaves_a_usable_database(
    database_url: str, statement: int
) -> None:
    _open_but_die(database_url, statement)
    storage = Storage(database_url)
    assert _differences(storage) == []
    storage.close()


@pytest.mark.parametrize("statement", [0, 5])
def test_a_process_that_dies_during_an_upgrade_loses_nothing(tmp_path: Path, statement: int) -> None:
    database = tmp_path / "old.db"
    connection = sqlite3.connect(database)
    connection.executescript(OLD_DATABASES[0].read_text())
    before = connection.execute("SELECT COUNT(*) FROM scope_generation").fetchone()
    connection.close()
    _open_but_die(f"sqlite:///{database}", statement)
    storage = Storage(f"sqlite:///{database}")
    assert _differences(storage) == []
    with storage.engine.connect() as opened:
        assert opened.execute(text("SELECT COUNT(*) FROM scope_generation")).one() == before
    storage.close()


@pytest.mark.parametrize("dump", OLD_DATABASES, ids=lambda path: path.stem)
def test_an_old_study_is_upgraded_and_continued(make_workplace: Callable[..., Workplace], dump: Path) -> None:
    workplace = make_workplace(budget={"trials": 4})
    database = workplace.folder / "runs/tiny.db"
    database.parent.mkdir()
    connection = sqlite3.connect(database)
    connection.executescript(dump.read_text())
    connection.close()

    before = json.loads(workplace.scope("status", "study.yaml", "--json").stdout)
    assert before["candidates"] == 3
    assert before["generations"]["candidate"] == 6
    storage = Storage(f"sqlite:///{database}")
    assert _differences(storage) == []
    with storage.engine.connect() as opened:
        assert opened.execute(text(f"SELECT version_num FROM {VERSION_TABLE}")).scalars().all() == [REVISION]
        assert opened.execute(text("PRAGMA foreign_key_check")).all() == []
    storage.close()

    result = workplace.scope("worker", "study.yaml")
    assert result.exit_code == 0, result.output
    after = json.loads(workplace.scope("status", "study.yaml", "--json").stdout)
    assert after["candidates"] == 4
    assert after["generations"]["stock"] == before["generations"]["stock"]


def test_migrations_lie_in_the_package() -> None:
    import calibrate.store.migrations as migrations

    folder = Path(str(migrations.__file__)).parent
    assert (folder / "env.py").is_file()
    assert list((folder / "versions").glob("v0001*.py"))
