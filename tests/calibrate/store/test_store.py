from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import optuna
import pytest
from sqlalchemy import inspect, text
from sqlalchemy.exc import IntegrityError

from calibrate.errors import CalibrateError
from calibrate.results.result import Result
from calibrate.search.optuna_study import open_optuna_study, tell
from calibrate.store import PAIRED, PAIRED_STOCK, Generation, Storage, Store, masked_url, portable_url
from calibrate.store.models import Base
from calibrate.store.schema import VERSION_TABLE

POLICY = {"warmup": 3, "max_skip": 4}


def _open(storage: Storage, **changes: Any) -> Store:
    parts = {"generation": {"height": 64}, "search": {}}
    return Store.open_study(
        storage,
        name="s",
        yaml_text="name: s",
        fixed_parts=changes.get("fixed_parts", parts),
        settings={"height": 64},
        model=changes.get("model", {"weights": "abc"}),
    )


def _generation(store: Store, **changes: Any) -> Generation:
    now = datetime.now(UTC)
    values: dict[str, Any] = {
        "kind": "candidate",
        "trial_number": 0,
        "environment_id": store.environment({"cpu_count": 2}, {"torch": "2"}),
        "prompt": "a red circle",
        "seed": 1,
        "policy": POLICY,
        "settings": {"height": 64},
        "evaluations": 50,
        "stock_evaluations": 200,
        "seconds_denoise": 1.5,
        "metrics": {"psnr_db": 40.0},
        "state": "complete",
        "started": now,
        "finished": now,
    }
    return Generation(**values | changes)


def test_a_generation_comes_back_as_it_was(storage: Storage) -> None:
    store = _open(storage)
    added = store.add(_generation(store))
    found = store.measured("candidate", POLICY, "a red circle", 1)
    assert found is not None
    assert found.metrics == {"psnr_db": 40.0}
    assert found.policy == POLICY
    assert found.started == added.started
    assert found.started.tzinfo is not None
    assert store.last_activity() == added.finished
    assert store.measured("candidate", {**POLICY, "warmup": 2}, "a red circle", 1) is None
    assert store.measured("candidate", POLICY, "a red circle", 2) is None


def test_a_measurement_cannot_be_recorded_twice(storage: Storage) -> None:
    store = _open(storage)
    store.add(_generation(store, state="failed", reason="out of memory"))
    store.add(_generation(store))
    with pytest.raises(IntegrityError):
        store.add(_generation(store))
    assert store.counts() == {"candidate": 1, "failed": 1}


def test_held_out_runs_may_be_repeated(storage: Storage) -> None:
    store = _open(storage)
    store.add(_generation(store, kind="held_out_scope"))
    store.add(_generation(store, kind="held_out_scope"))
    assert store.counts() == {"held_out_scope": 2}


def test_stock_runs_that_candidates_were_timed_beside_are_spent_too(storage: Storage) -> None:
    """A study need not try its pipeline as it was loaded: then all stock runs are paired ones."""
    store = _open(storage)
    store.add(_generation(store, kind=PAIRED_STOCK, policy=None, evaluations=200))
    store.add(_generation(store, seed=1, metrics={"psnr_db": 40.0, PAIRED: True}))
    store.add(_generation(store, seed=2))
    store.add(_generation(store, seed=3, metrics={"psnr_db": 40.0, PAIRED: True}, metric_version=1))
    store.add(_generation(store, seed=4, metrics=None, state="failed"))
    assert store.equivalents(metric_version=0) == pytest.approx(1 + 2 / 4 + 1)
    assert store.equivalents() == pytest.approx(1 + 3 / 4 + 2)


def test_equal_environments_share_a_row(storage: Storage) -> None:
    store = _open(storage)
    first = store.environment({"cpu_count": 2}, {"torch": "2"})
    assert store.environment({"cpu_count": 2}, {"torch": "2"}) == first
    assert store.environment({"cpu_count": 4}, {"torch": "2"}) != first


def test_a_study_continues_only_with_the_same_fixed_parts_and_model(storage: Storage) -> None:
    first = _open(storage)
    assert _open(storage).study.id == first.study.id
    with pytest.raises(CalibrateError, match="generation: study 's' was started with another value"):
        _open(storage, fixed_parts={"generation": {"height": 80}, "search": {}})
    with pytest.raises(CalibrateError, match="model"):
        _open(storage, model={"weights": "def"})


def test_optunas_tables_live_beside_ours(storage: Storage) -> None:
    store = _open(storage)
    open_optuna_study(store, create=True)
    tables = set(inspect(storage.engine).get_table_names())
    ours = {name for name in tables if name.startswith("scope_")}
    assert ours == set(Base.metadata.tables) | {VERSION_TABLE}
    assert {"studies", "trials", "alembic_version"} <= tables - ours
    assert optuna.load_study(
        study_name="s", storage=storage.url.render_as_string(hide_password=False)
    ).directions == [optuna.study.StudyDirection.MAXIMIZE] * 2  # fmt: skip


@pytest.mark.parametrize("timed", [False, True])
def test_an_optuna_study_keeps_what_it_was_made_to_maximise(storage: Storage, timed: bool) -> None:
    store = _open(storage)
    open_optuna_study(store, create=True, timed=timed)
    study = open_optuna_study(store, create=True, timed=not timed)
    result = Result(0, {}, 4.0, 2.5, {"psnr_db": 30.0}, 1, None, paired=True)
    tell(study, study.ask(), result)
    (trial,) = study.trials
    assert trial.values == [2.5 if timed else 4.0, 30.0]
    assert study.metric_names == ["speed-up of denoising" if timed else "speed-up in block evaluations", "PSNR in dB"]
    # Where it is no value it can be read beside them.
    assert trial.user_attrs.get("speed-up in block evaluations") == (4.0 if timed else None)
    _open(storage).rename("ours")  # either is known to be ours


def test_a_newer_schema_is_refused(storage: Storage) -> None:
    with storage.engine.begin() as connection:
        connection.execute(text(f"UPDATE {VERSION_TABLE} SET version_num = '0099'"))
    with pytest.raises(CalibrateError, match="schema version 0099.*update scope-calibrate"):
        Storage(storage.url.render_as_string(hide_password=False))


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("postgresql+psycopg://anna:hunter2@127.0.0.1:1/scope", "cannot be reached"),
        ("postgresql+nosuchdriver://anna:hunter2@127.0.0.1:1/scope", "no driver"),
        ("oracle+nothing://anna:hunter2@h/scope", "no driver"),
        ("hunter2 is not a url", "not a database URL"),
        ("sqlite://", "needs a file"),
        ("sqlite:////dev/null/x/study.db", "cannot be made"),
    ],
)
def test_an_unusable_database_is_explained_without_its_password(url: str, sentence: str) -> None:
    with pytest.raises(CalibrateError, match=sentence) as caught:
        Storage(url)
    assert "hunter2" not in str(caught.value)
    assert str(caught.value).startswith("storage: ")


def test_a_file_that_is_no_database_is_explained(tmp_path: Any) -> None:
    path = tmp_path / "notes.db"
    path.write_text("not a database at all, but long enough to be taken for a header of one" * 10)
    with pytest.raises(CalibrateError, match="not an SQLite database"):
        Storage(f"sqlite:///{path}")


def test_urls_are_shown_without_secrets_and_stored_without_folders() -> None:
    url = "postgresql+psycopg://anna:hunter2@db/scope?sslpassword=swordfish&host=x"
    assert "hunter2" not in masked_url(url)
    assert "swordfish" not in masked_url(url)
    assert portable_url("sqlite:////home/anna/runs/s.db") == "sqlite:///s.db"
