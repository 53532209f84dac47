"""Databases of earlier programs, kept as they were written, are brought up to date when they are opened."""

from __future__ import annotations

import itertools
import json
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from optuna.trial import TrialState
from sqlalchemy import Engine, event, text
from streamlit.testing.v1 import AppTest

import dashboard
from calibrate.display.data import StudyData, load_study
from calibrate.display.measures import quality_measures
from calibrate.quality.metrics import METRIC_VERSION
from calibrate.search.optuna_study import count, open_optuna_study
from calibrate.serve import STORAGE_VARIABLE
from calibrate.store import Storage, Store, browse
from calibrate.store.models import Base
from calibrate.store.schema import REVISION, VERSION_TABLE
from dashboard.page import VIEWS
from scope_runtime import Profile
from tests.calibrate.conftest import Workplace

OLD_DATABASES = sorted((Path(__file__).parent / "data").glob("revision-*.sql"))
OLD_MEANING = "mean of frame PSNR, before version 2"


def _words(shown: str) -> str:
    """What a table says, however its lines are broken."""
    return " ".join(shown.replace("│", " ").split())


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


@pytest.fixture(params=OLD_DATABASES, ids=lambda path: path.stem)
def old(make_workplace: Callable[..., Workplace], request: pytest.FixtureRequest) -> Workplace:
    """A workplace with an old database, whose three candidates were measured by the first version of the figures."""
    workplace = make_workplace(budget={"trials": 2})
    database = workplace.folder / "runs/tiny.db"
    database.parent.mkdir()
    connection = sqlite3.connect(database)
    connection.executescript(request.param.read_text())
    connection.close()
    return workplace


def _json(workplace: Workplace, *arguments: str) -> Any:
    result = workplace.scope(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def _study(workplace: Workplace) -> StudyData:
    storage = Storage(f"sqlite:///{workplace.folder / 'runs/tiny.db'}", read_only=True)
    data = load_study(storage, "tiny")
    storage.close()
    return data


def test_an_old_study_opens_with_the_meaning_of_its_figures(old: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    status = _json(old, "status", "study.yaml")
    assert status["generations"]["candidate"] == 6
    assert (status["candidates"], status["feasible"], status["best"]) == (0, 0, None)
    assert status["set_apart"] == {"candidates": 3, "psnr_db": OLD_MEANING}
    assert status["equivalents"] == pytest.approx(1 + 52 / 72), "the baselines alone"
    assert OLD_MEANING in _words(old.scope("status", "study.yaml").stdout)

    storage = Storage(f"sqlite:///{old.folder / 'runs/tiny.db'}")
    assert _differences(storage) == []
    with storage.engine.connect() as opened:
        assert opened.execute(text(f"SELECT version_num FROM {VERSION_TABLE}")).scalars().all() == [REVISION]
        assert opened.execute(text("PRAGMA foreign_key_check")).all() == []
        versions = opened.execute(text("SELECT DISTINCT kind, metric_version FROM scope_generation")).all()
    storage.close()
    assert dict(versions) == {
        "stock": 0, "exact": 0, "candidate": 1, "held_out_stock": 0, "held_out_exact": 0, "held_out_scope": 1,
    }  # fmt: skip

    front = _json(old, "front", "study.yaml")
    assert {entry["metric_version"] for entry in front} == {1}
    assert [entry["trial"] for entry in front] == [2, 1, 0]
    assert OLD_MEANING in _words(old.scope("front", "study.yaml").stdout)

    data = _study(old)
    assert data.results == {}
    assert data.points.empty
    assert data.earlier is not None
    assert (data.earlier.metric_version, data.earlier.meaning) == (1, OLD_MEANING)
    assert sorted(data.earlier.points["trial"]) == sorted(data.earlier.results) == [0, 1, 2]
    assert OLD_MEANING in quality_measures(1)["psnr_db"].label

    monkeypatch.setenv(STORAGE_VARIABLE, f"sqlite:///{old.folder}/runs/tiny.db")
    page = AppTest.from_file(str(Path(dashboard.__file__).with_name("app.py")), default_timeout=120)
    for view in VIEWS:
        page.session_state["view"] = view
        page.run()
        assert not page.exception, view
        assert any(OLD_MEANING in warning.value for warning in page.warning), view


def test_an_old_study_goes_on_with_new_figures_and_never_mixes_them(
    old: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = _json(old, "front", "study.yaml")
    refused = old.scope("export", "study.yaml")
    assert refused.exit_code == 2
    assert OLD_MEANING in refused.stderr
    assert "--trial" in refused.stderr

    result = old.scope("run", "study.yaml")
    assert result.exit_code == 0, result.output
    status = _json(old, "status", "study.yaml")
    assert (status["candidates"], status["set_apart"]["candidates"]) == (2, 3)
    assert status["generations"]["stock"] == 2
    assert status["generations"]["candidate"] == 10
    front = _json(old, "front", "study.yaml")
    assert {entry["metric_version"] for entry in front} == {METRIC_VERSION}
    assert all(entry["trial"] > 2 for entry in front)
    assert _json(old, "front", "study.yaml", "--earlier") == before
    assert "front --earlier" in _words(old.scope("front", "study.yaml").stdout)

    # A study begins with the same candidates each time: they were measured again, by the new figures.
    data = _study(old)
    assert data.earlier is not None
    assert set(data.results).isdisjoint(data.earlier.results)
    assert set(data.points["trial"]) == set(data.results)
    before_by_rows, again_by_rows = (
        {(r.policy["warmup"], r.policy["max_skip"]): r for r in found.values()}
        for found in (data.earlier.results, data.results)
    )
    again = again_by_rows.keys() & before_by_rows.keys()
    assert again
    storage = Storage(f"sqlite:///{old.folder / 'runs/tiny.db'}", read_only=True)
    for rows in again:
        earlier, new = before_by_rows[rows], again_by_rows[rows]
        assert earlier.figures["psnr_db"] > new.figures["psnr_db"]
        for found in (earlier, new):
            measured = browse.measurements(storage, data.record.id, found.policy, found.metric_version)
            assert {row.metric_version for row, _ in measured} == {found.metric_version}
    storage.close()

    monkeypatch.setenv(STORAGE_VARIABLE, f"sqlite:///{old.folder}/runs/tiny.db")
    page = AppTest.from_file(str(Path(dashboard.__file__).with_name("app.py")), default_timeout=120)
    page.run()
    assert not page.exception
    assert not page.warning
    page.toggle(key="earlier").set_value(True).run()
    assert not page.exception
    assert any(OLD_MEANING in warning.value for warning in page.warning)

    profile = Profile.load(old.folder / "profiles/tiny.json")
    assert profile.evidence["metric_version"] == profile.evidence["search"]["metric_version"] == METRIC_VERSION
    # A trial from before can be exported by its number: what the search measured of it keeps its meaning.
    exported = old.scope("export", "study.yaml", "--trial", "2", "--output", "old.json")
    assert exported.exit_code == 0, exported.output
    assert OLD_MEANING in _words(exported.stdout)
    evidence = Profile.load(old.folder / "old.json").evidence
    assert (evidence["metric_version"], evidence["search"]["metric_version"]) == (METRIC_VERSION, 1)


def test_a_search_learns_nothing_from_old_figures(old: Workplace) -> None:
    old.scope("status", "study.yaml")
    storage = Storage(f"sqlite:///{old.folder / 'runs/tiny.db'}")
    store = Store.find_study(storage, "tiny")
    assert store.complete("candidate", metric_version=METRIC_VERSION) == []
    trials = open_optuna_study(store, create=True)
    assert [t for t in trials.get_trials() if t.state == TrialState.COMPLETE] == []
    assert trials.best_trials == []
    assert count(trials) == (0, 0)
    # As Optuna's own sampler asks for what it learns from.
    assert trials._get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED), use_cache=True) == []
    every = optuna.load_study(study_name="tiny", storage=trials._storage)
    known = [trial.params for trial in every.get_trials(states=(TrialState.COMPLETE,))]
    assert len(known) == 3
    waiting = len(trials.get_trials(states=(TrialState.WAITING,)))
    for _ in range(2):  # what was measured before is queued again, and once
        trials.enqueue_trial(known[0], skip_if_exists=True)
        assert len(trials.get_trials(states=(TrialState.WAITING,))) == waiting + 1
    storage.close()


def test_migrations_lie_in_the_package() -> None:
    import calibrate.store.migrations as migrations

    folder = Path(str(migrations.__file__)).parent
    assert (folder / "env.py").is_file()
    assert list((folder / "versions").glob("v0001*.py"))
