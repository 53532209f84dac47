"""Reading whole databases, on every kind of database, without ever writing."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from calibrate.errors import CalibrateError
from calibrate.store import Storage, browse
from studies.bench.synthetic_study import write_study


def test_a_read_only_database_shows_everything_and_takes_nothing(database_url: str) -> None:
    writing = Storage(database_url)
    store = write_study(writing, "made", 3)
    reading = Storage(database_url, read_only=True)
    (overview,) = browse.overviews(reading)
    assert overview.generations == {"candidate": 6, "stock": 2, "exact": 2}
    assert overview.trials == {"complete": 3, "fail": 1, "running": 1}
    assert overview.hardware["processor"] == "made up"
    trials = browse.trials(reading, "made", ("result",))
    assert [(trial.number, trial.state) for trial in trials[:3]] == [(0, "FAIL"), (1, "RUNNING"), (2, "COMPLETE")]
    policy = trials[2].attributes["result"]["policy"]
    measured = browse.measurements(reading, overview.study.id, policy)
    assert [row.kind for row, _ in measured] == ["candidate", "candidate"]
    assert len(measured[0][1]["modes"]) == 24
    assert browse.means_by_kind(reading, overview.study.id)["exact"].seconds_denoise == 5.0
    for statement in ("DELETE FROM scope_generation", "CREATE TABLE t (x INTEGER)"):
        with pytest.raises(DBAPIError), reading.engine.begin() as connection:
            connection.execute(text(statement))
    before = browse.pulse(reading)
    assert browse.pulse(reading) == before
    store.add_profile(0, "fastest", "p.json", {})
    assert browse.pulse(reading) != before
    reading.close()
    writing.close()


def test_a_database_without_a_study_is_explained_and_left_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(CalibrateError, match="does not exist yet"):
        Storage(f"sqlite:///{tmp_path / 'none.db'}", read_only=True)
    (tmp_path / "bare.db").touch()
    with pytest.raises(CalibrateError, match="holds no studies yet"):
        Storage(f"sqlite:///{tmp_path / 'bare.db'}", read_only=True)
    assert (tmp_path / "bare.db").stat().st_size == 0


def test_a_study_without_trials_is_read(tmp_path: Path) -> None:
    storage = Storage(f"sqlite:///{tmp_path / 'young.db'}")
    assert browse.trials(storage, "young", ()) == []
    assert browse.parameters(storage, "young") == {}
    assert browse.overviews(storage) == []
    storage.close()
