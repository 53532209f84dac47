"""Commands on whole studies: delete, rename, compare, list; and how many queries a large one takes."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import optuna
import pytest
from sqlalchemy import Engine, create_engine, event, insert, text

from calibrate.export import listing
from calibrate.export.listing import FORMATS
from calibrate.store import Generation, Storage, Store
from calibrate.store.lock import StudyLock
from studies.bench.synthetic_study import study_text, write_study
from tests.calibrate.conftest import Workplace

Make = Callable[..., Workplace]


@pytest.fixture
def started(make_workplace: Make, database_url: str) -> Workplace:
    workplace = make_workplace(name="first", storage=database_url, budget={"trials": 1})
    result = workplace.scope("run", "study.yaml")
    assert result.exit_code == 0, result.output
    return workplace


def _rows(url: str, table: str) -> int:
    engine = create_engine(url)
    try:
        with engine.connect() as connection:
            return connection.execute(text(f"SELECT COUNT(*) FROM {table}")).scalar_one()
    finally:
        engine.dispose()


def test_a_study_is_renamed_and_deleted_with_its_trials(started: Workplace, database_url: str) -> None:
    result = started.scope("rename", "study.yaml", "second")
    assert result.exit_code == 0, result.output
    assert "name: second" in result.stdout
    assert started.scope("status", "study.yaml").exit_code == 2
    started.study.write_text(started.study.read_text().replace("name: first", "name: second"))
    assert json.loads(started.scope("status", "study.yaml", "--json").stdout)["candidates"] == 1
    assert optuna.get_all_study_names(database_url) == ["second"]

    assert started.scope("delete", "study.yaml", "--yes").exit_code == 0
    for table in ("scope_study", "scope_generation", "scope_driver", "studies", "trials"):
        assert _rows(database_url, table) == 0, table
    assert started.scope("status", "study.yaml").exit_code == 2


def test_names_that_are_taken_or_not_allowed_are_refused(started: Workplace, database_url: str) -> None:
    taken = started.folder / "other.yaml"
    taken.write_text(started.study.read_text().replace("name: first", "name: other"))
    assert started.scope("run", "other.yaml").exit_code == 0
    for name, sentence in (("other", "there is a study 'other' already"), ("a b/c", "not allowed")):
        result = started.scope("rename", "study.yaml", name)
        assert result.exit_code == 2
        assert sentence in result.stderr
    assert sorted(optuna.get_all_study_names(database_url)) == ["first", "other"]


def test_a_study_that_is_being_run_is_left_alone(started: Workplace, database_url: str) -> None:
    store = Store.find_study(Storage(database_url), "first")
    with StudyLock(store):
        store.keep_driver("gpu-box", 123, {})
        for command in (["run", "study.yaml"], ["delete", "study.yaml", "--yes"], ["rename", "study.yaml", "second"]):
            result = started.scope(*command)
            assert result.exit_code == 2
            assert "study 'first' is being run by process 123 on gpu-box" in result.stderr
    store.storage.close()
    assert started.scope("delete", "study.yaml", "--yes").exit_code == 0


def test_studies_are_compared_by_what_differs(finished: Workplace) -> None:
    other = finished.folder / "strict.yaml"
    other.write_text(finished.study.read_text().replace("psnr_db: 20.0", "psnr_db: 99.0"))
    compared = json.loads(finished.scope("compare", "study.yaml", "strict.yaml", "--json").stdout)
    assert [entry["differing_settings"] for entry in compared] == [{"floors.psnr_db": 20.0}, {"floors.psnr_db": 99.0}]
    assert compared[0]["best"] is not None
    assert compared[1]["best"] is None
    assert compared[0]["exported"]["n"] == 2
    assert "floors.psnr_db" in finished.scope("compare", "study.yaml", "strict.yaml").stdout


def test_generations_are_listed_as_csv_and_json(finished: Workplace) -> None:
    listed = list(csv.DictReader(io.StringIO(finished.scope("generations", "study.yaml").stdout)))
    objects = [
        json.loads(line) for line in finished.scope("generations", "study.yaml", "--format", "json").stdout.splitlines()
    ]
    assert len(listed) == len(objects) >= 20
    assert [int(row["id"]) for row in listed] == [entry["id"] for entry in objects]
    assert json.loads(listed[-1]["metrics"]) == objects[-1]["metrics"]
    assert objects[0]["versions"]["torch"]
    assert finished.scope("generations", "study.yaml", "--output", "all.csv").exit_code == 0
    assert (finished.folder / "all.csv").read_text().count("\n") >= 21
    assert finished.scope("generations", "study.yaml", "--format", "xml").exit_code == 2


@pytest.mark.parametrize("command", ["status", "front", "compare", "generations", "rename"])
def test_whoever_only_looks_does_not_wait_for_torch(make_workplace: Make, finished: Workplace, command: str) -> None:
    """Seconds of a command on a small study are those of what it loads."""
    program = (
        "import sys\n"
        "from calibrate.cli import app\n"
        "try:\n"
        "    app()\n"
        "finally:\n"
        "    print([name for name in ('torch', 'optuna', 'diffusers', 'scipy', 'cv2') if name in sys.modules])\n"
    )
    further = {"compare": ["study.yaml"], "rename": ["a name that is not allowed"]}.get(command, [])
    done = subprocess.run(
        [sys.executable, "-c", program, command, "study.yaml", *further],
        cwd=finished.folder,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == (2 if command == "rename" else 0), done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("form", FORMATS)
def test_a_list_takes_no_more_memory_for_more_generations(
    storage: Storage, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    monkeypatch.setattr(listing, "_ROWS_AT_ONCE", 50)
    store = Store.open_study(storage, name="s", yaml_text="", fixed_parts={}, settings={}, model={})
    now, environment = datetime.now(UTC), store.environment({}, {})
    peaks = []
    for number in range(2):
        rows = [
            {
                "study_id": store.study.id, "environment_id": environment, "kind": "held_out_scope",
                "prompt": "p" * 1000, "prompt_digest": "p", "seed": 0, "policy_digest": "p",
                "settings": {}, "state": "complete",
                "started": now, "finished": now,
            }
        ] * (300, 2000)[number]  # fmt: skip
        storage.transaction(lambda session, rows=rows: session.execute(insert(Generation), rows))
        # What is made once stays out of the count.
        assert sum(1 for _ in listing.render(store, form)) == (form == "csv") + (300, 2300)[number]
        tracemalloc.start()
        for _ in listing.render(store, form):
            pass
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 2 * peaks[0]


@contextmanager
def _counted() -> Iterator[list[str]]:
    statements: list[str] = []

    def count(_c: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        statements.append(statement)

    event.listen(Engine, "before_cursor_execute", count)
    try:
        yield statements
    finally:
        event.remove(Engine, "before_cursor_execute", count)


@pytest.mark.parametrize("command", ["status", "front"])
def test_the_number_of_queries_does_not_grow_with_the_study(
    make_workplace: Make, finished: Workplace, command: str
) -> None:
    small = make_workplace(name="small", budget={"trials": 1})
    assert small.scope("run", "study.yaml").exit_code == 0
    counts = []
    for workplace in (small, finished):
        with _counted() as statements:
            assert workplace.scope(command, "study.yaml", "--json").exit_code == 0
        counts.append(len([s for s in statements if not s.startswith("PRAGMA")]))
    assert counts[0] == counts[1]


def test_the_queries_of_a_large_study_use_indexes(finished: Workplace) -> None:
    store = Store.find_study(Storage(f"sqlite:///{finished.folder / 'runs/tiny.db'}"), "tiny")
    with _counted() as statements:
        store.counts()
        store.last_activity()
        store.measured("candidate", None, "a", 1)
    with store.storage.engine.connect() as connection:
        for statement in statements:
            if statement.startswith("SELECT"):
                bound = {f"{n}": 0 for n in range(20)}
                plan = connection.exec_driver_sql(
                    "EXPLAIN QUERY PLAN " + statement, tuple(bound.values())[: statement.count("?")]
                ).all()
                assert all("SCAN" not in row[-1] or "INDEX" in row[-1] for row in plan), (statement, plan)
    store.storage.close()


def test_front_and_status_tell_thresholds_and_learned_weights_apart(make_workplace: Make) -> None:
    workplace = make_workplace(name="mixed")
    url = f"sqlite:///{workplace.folder / 'mixed.db'}"
    storage = Storage(url)
    write_study(storage, "mixed", 6, learned=6)
    storage.close()
    workplace.study.write_text(study_text("mixed", trials=12, storage=url))
    listed = workplace.scope("front", "study.yaml", "--json")
    assert listed.exit_code == 0, listed.output
    entries = json.loads(listed.stdout)
    assert {entry["kind"] for entry in entries} == {"thresholds", "learned"}
    assert [entry["kind"] == "learned" for entry in entries] == ["gap_weights" in entry["policy"] for entry in entries]
    table = workplace.scope("front", "study.yaml").stdout
    assert table.count(" learned ") == sum(entry["kind"] == "learned" for entry in entries)
    best = json.loads(workplace.scope("status", "study.yaml", "--json").stdout)["best"]
    assert best["kind"] == entries[0]["kind"]
    assert f"trial {best['trial']} ({best['kind']})" in " ".join(workplace.scope("status", "study.yaml").stdout.split())
