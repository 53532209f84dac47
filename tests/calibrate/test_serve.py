from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from calibrate.cli import app
from calibrate.serve import STORAGE_VARIABLE
from calibrate.store import Storage


def _dashboard(*options: str) -> Any:
    return CliRunner().invoke(app, ["dashboard", *options])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    return tmp_path


def _make(name: str) -> None:
    Storage(f"sqlite:///runs/{name}.db").close()


def test_the_only_database_is_served_on_loopback_without_statistics(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _make("one")
    calls: list[tuple[list[str], dict[str, str]]] = []
    monkeypatch.setattr(os, "execve", lambda path, command, environment: calls.append((command, environment)))
    assert _dashboard("--port", "18599").exit_code == 0
    ((command, environment),) = calls
    assert "--server.address=127.0.0.1" in command
    assert "--browser.gatherUsageStats=false" in command
    assert environment[STORAGE_VARIABLE] == f"sqlite:///{folder / 'runs/one.db'}"
    assert not any("one.db" in argument for argument in command)


def test_what_cannot_be_served_is_one_sentence_and_nothing_is_made(folder: Path) -> None:
    assert "there is no database in runs/" in _dashboard().stderr
    missing = _dashboard("--storage", "sqlite:///runs/none.db")
    assert missing.exit_code == 2
    assert "does not exist yet" in missing.stderr
    assert not list((folder / "runs").iterdir())
    _make("one")
    _make("two")
    assert "name one of sqlite:///runs/one.db, sqlite:///runs/two.db" in _dashboard().stderr
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        result = _dashboard("--storage", "sqlite:///runs/one.db", "--port", str(taken.getsockname()[1]))
    assert result.exit_code == 2
    assert "choose another port" in result.stderr
