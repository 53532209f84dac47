"""URLs of databases: every form of one means the same file, and none of their secrets is ever seen again."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import yaml
from sqlalchemy import make_url

from calibrate.errors import CalibrateError
from calibrate.serve import default_storage
from calibrate.store import Storage, database_file, masked_url, portable_url
from calibrate.store.address import parse_url
from calibrate.store.optuna_storage import open_optuna
from calibrate.study.study_file import StudyFile
from tests.calibrate.conftest import Workplace

Make = Callable[..., Workplace]

SECRET = "XYZZYPLUGH"
# Every way in which a password can stand in a URL, encoded as it should be.
WELL_FORMED = [
    f"postgresql+psycopg://me:{SECRET}@127.0.0.1:1/db",
    f"postgresql://me:{SECRET}@127.0.0.1:1/db",
    f"postgresql+psycopg://me:a%40{SECRET}%2F@127.0.0.1:1/db",
    f"postgresql+psycopg://me:a:{SECRET}/b@127.0.0.1:1/db",
    f"postgresql+psycopg://me@127.0.0.1:1/db?password={SECRET}",
    f"postgresql+psycopg://me@127.0.0.1:1/db?password=a%40{SECRET}",
    f"postgresql+psycopg://me@127.0.0.1:1/db?sslpassword={SECRET}",
    f"postgresql+psycopg://me@127.0.0.1:1/db?passfile=/home/me/{SECRET}",
    f"postgresql+psycopg://me@127.0.0.1:1/db?unheard_of={SECRET}",
    f"postgresql+psycopg://me@127.0.0.1:1/db?options=-c%20my.secret={SECRET}",
]
# And as it should not be.
ILL_FORMED = [
    f"postgresql+psycopg://me@127.0.0.1:1/db?password=a@{SECRET}",
    f"postgresql+psycopg://127.0.0.1:1/db?user=me&password=a@{SECRET}",
    f"postgresql+psycopg://me@here:pw@{SECRET}@127.0.0.1:1/db",
    f"postgresql+psycopg://me:pw@{SECRET}@127.0.0.1:1/db",
    f"postgresql+psycopg://me:pw@{SECRET[:4]}/{SECRET[4:]}@127.0.0.1:1/db",
    f"postgresql+psycopg://me:pw@a?{SECRET}@127.0.0.1:1/db",
    f"postgresql+psycopg://me:pw@a?b={SECRET}@127.0.0.1:1/db",
    f"postgresql+psycopg://me:pw@1:{SECRET}@127.0.0.1:1/db",
    f"postgresql+psycopg://me:pw@[{SECRET}@127.0.0.1:1/db",
    f"postgres://me:{SECRET}@127.0.0.1:1/db",
    f"mysql://me:{SECRET}@127.0.0.1:1/db",
    f"postgresql+nosuchdriver://me:{SECRET}@127.0.0.1:1/db",
    f"postgresql+psycopg:/me:{SECRET}@127.0.0.1:1/db",
    f"me:{SECRET}@127.0.0.1:1/db",
    f"postgresql+psycopg://me:{SECRET}\a@127.0.0.1:1/db",
]


def _seen(text: str) -> bool:
    """Whether a part of the secret is in a text."""
    return any(part in text for part in (SECRET, SECRET[:4], SECRET[4:]))


@pytest.mark.parametrize("url", WELL_FORMED + ILL_FORMED)
def test_no_command_shows_a_password(make_workplace: Make, url: str) -> None:
    workplace = make_workplace(name="masked", storage=url)
    for command in (
        ("status", "study.yaml"),
        ("doctor", "study.yaml"),
        ("doctor", "study.yaml", "--json"),
        ("delete", "study.yaml", "--yes"),
        ("generations", "study.yaml"),
        ("dashboard", "--storage", url),
    ):
        result = workplace.scope(*command)
        assert result.exit_code == 2, (command, result.output)
        assert "storage" in result.output
        assert not _seen(result.output), result.output
        assert isinstance(result.exception, SystemExit)


@pytest.mark.parametrize("url", ILL_FORMED[:9])
def test_a_password_that_is_not_encoded_is_explained(url: str) -> None:
    with pytest.raises(CalibrateError, match="percent-encode the password .@ is %40.*PGPASSWORD"):
        parse_url(url)


@pytest.mark.parametrize("url", WELL_FORMED)
def test_a_url_is_shown_and_exported_without_its_password(url: str) -> None:
    assert not _seen(masked_url(url))
    assert not _seen(portable_url(url))
    assert "127.0.0.1" in masked_url(url)


def test_nothing_that_a_study_leaves_holds_its_password(make_workplace: Make, postgres_database: str) -> None:
    """The server lets everybody in, so any password will do."""
    url = make_url(postgres_database).set(password=SECRET)
    workplace = make_workplace(
        name="secret",
        storage=url.render_as_string(hide_password=False),
        budget={"trials": 1},
        timing={"max_repeats": 0},
    )
    old = f"# storage: postgresql+psycopg://me:old{SECRET}@db/scope\n"
    workplace.study.write_text(old + workplace.study.read_text())
    printed = [workplace.scope("run", "study.yaml", "--json").output]
    for command in (["status"], ["status", "--json"], ["doctor"], ["front"], ["compare"], ["generations"]):
        result = workplace.scope(*command, "study.yaml")
        assert result.exit_code == 0, result.output
        printed.append(result.output)
    printed.append(workplace.scope("rename", "study.yaml", "other").output)
    assert not any(_seen(text) for text in printed)
    for path in workplace.folder.rglob("*"):
        if path.is_file() and path != workplace.study:
            assert SECRET.encode() not in path.read_bytes(), path
    storage = Storage(postgres_database)
    with storage.engine.connect() as connection:
        tables = (
            connection.exec_driver_sql("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").scalars().all()
        )
        for table in tables:
            rows = connection.exec_driver_sql(f'SELECT CAST(t AS TEXT) FROM "{table}" AS t').scalars().all()
            assert not any(_seen(row) for row in rows), table
    storage.close()


def test_the_recorded_text_keeps_comments_but_no_passwords(tmp_path: Path, make_workplace: Make) -> None:
    workplace = make_workplace(name="commented")
    workplace.study.write_text(
        f"# storage: postgresql+psycopg://me:{SECRET}@db/scope?sslpassword={SECRET}\n{workplace.study.read_text()}"
    )
    text = StudyFile(workplace.study).masked_text
    assert text.startswith("# storage: postgresql+psycopg://me:***@db/scope?sslpassword=***\n")
    assert yaml.safe_load(text)["name"] == "commented"


FORMS = [
    "sqlite:///here/study.db",
    "sqlite+pysqlite:///here/study.db",
    "sqlite:///./here/study.db",
    "sqlite:///{folder}/here/study.db",
    "sqlite:///file:here/study.db?uri=true",
    "sqlite:///file:here/study.db?mode=rwc&uri=true",
    "sqlite:///file:{folder}/here/study.db?uri=true",
    "sqlite:///file://{folder}/here/study.db?uri=true",
    "sqlite:///file://localhost{folder}/here/study.db?uri=true",
    "sqlite:///file:here/st%75dy.db?uri=true",
    "sqlite:///here/study.db?mode=rw",
    "sqlite:///here/study.db?timeout=20",
]


@pytest.fixture
def with_study(finished: Workplace, tmp_path: Path) -> Workplace:
    """The finished study with its database elsewhere."""
    (tmp_path / "here").mkdir()
    copy = sqlite3.connect(tmp_path / "here/study.db")
    with closing(sqlite3.connect(finished.folder / "runs/tiny.db")) as source, closing(copy):
        source.backup(copy)
    (tmp_path / "study.yaml").write_text(finished.study.read_text())
    (tmp_path / "pipe").symlink_to(finished.folder / "pipe")
    return Workplace(tmp_path, tmp_path / "study.yaml")


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_url_means_the_same_file(
    with_study: Workplace, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(with_study.folder)
    url = form.format(folder=with_study.folder)
    file = database_file(url)
    assert file is not None
    assert file.resolve() == with_study.folder / "here/study.db"
    assert portable_url(url) == "sqlite:///study.db"
    study = yaml.safe_load(with_study.study.read_text())
    with_study.study.write_text(yaml.safe_dump(study | {"storage": url}))
    assert json.loads(with_study.scope("status", "study.yaml", "--json").stdout)["candidates"] == 5
    storage = Storage(url, read_only=True)
    storage.close()
    trials = open_optuna(Storage(url))
    assert trials.get_study_id_from_name("tiny")
    result = with_study.scope("generations", "study.yaml", "--output", "here/study.db")
    assert result.exit_code == 2
    assert "the study's database" in result.stderr
    assert with_study.scope("rename", "study.yaml", "other").exit_code == 0
    assert {path.name for path in with_study.folder.iterdir()} == {"here", "pipe", "study.yaml"}
    assert {path.name.partition(".db")[0] for path in (with_study.folder / "here").iterdir()} == {"study"}


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("sqlite://", "needs a file"),
        ("sqlite:///", "needs a file"),
        ("sqlite:///:memory:", "needs a file"),
        ("sqlite:///file::memory:?uri=true", "needs a file"),
        ("sqlite:///file:x.db?mode=memory&uri=true", "needs a file"),
        ("sqlite://runs/x.db", "three slashes"),
        ("sqlite:runs/x.db", "not a database URL"),
        ("runs/x.db", "for this file sqlite:///runs/x.db"),
        ("/abs/x.sqlite3", "for this file sqlite:////abs/x.sqlite3"),
        ("sqlite+aiosqlite:///x.db", "no driver"),
        ("sqlite:///x.db?vfs=unix-none", "vfs is not known"),
        ("sqlite:///x.db?immutable=1", "immutable is not known"),
        ("sqlite:///x.db?mode=other", "mode must be"),
        ("sqlite:///x.db?timeout=long", "timeout must be"),
    ],
)
def test_what_is_no_file_is_refused(url: str, said: str) -> None:
    with pytest.raises(CalibrateError, match=said):
        Storage(url)


def test_names_with_characters_of_urls_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plain file name, with whatever it holds, is what a new database is called."""
    monkeypatch.chdir(tmp_path)
    for name in ("me@home.db", "file:odd.db", "a#b.db", "a b{c}.db"):
        storage = Storage(f"sqlite:///{name}")
        open_optuna(storage)
        storage.close()
        assert (tmp_path / name).is_file(), name
    (tmp_path / "runs").mkdir()
    Storage("sqlite:///runs/only.db").close()
    assert default_storage() == "sqlite:///runs/only.db"
