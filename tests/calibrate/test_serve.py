from __future__ import annotations

import contextlib
import os
import pty
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from calibrate.cli import app
from calibrate.serve import CACHES_VARIABLE, STORAGE_VARIABLE
from calibrate.store import Storage
from studies.browser import free_port, newcomer, wait_until_up


def _dashboard(*options: str) -> Any:
    return CliRunner().invoke(app, ["dashboard", *options])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    return tmp_path


def _make(name: str) -> None:
    Storage(f"sqlite:///runs/{name}.db").close()


def test_the_only_database_is_served_on_loopback_and_not_named_in_arguments(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _make("one")
    calls: list[tuple[list[str], dict[str, str]]] = []
    monkeypatch.setattr(os, "execve", lambda path, command, environment: calls.append((command, environment)))
    assert _dashboard("--port", "18599", "--allow-host", "lab.example", "--cache", "runs").exit_code == 0
    ((command, environment),) = calls
    assert command[1:] == [
        "-m", "dashboard", "--address", "127.0.0.1", "--port", "18599", "--allow-host", "lab.example",
    ]  # fmt: skip
    assert environment[STORAGE_VARIABLE] == f"sqlite:///{folder / 'runs/one.db'}"
    assert environment[CACHES_VARIABLE] == str(folder / "runs")


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
    for option, value in (("--allow-host", "http://lab.example/"), ("--allow-host", "*"), ("--cache", "nowhere")):
        refused = _dashboard("--storage", "sqlite:///runs/one.db", option, value)
        assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1)
        assert refused.stderr.startswith(f"Error: {option}: ")


def test_a_database_of_an_older_version_is_one_sentence_and_stays_as_it_is(folder: Path) -> None:
    text = (Path(__file__).parent / "store/data/revision-0001.sql").read_text()
    with contextlib.closing(sqlite3.connect("runs/old.db")) as connection:
        connection.executescript(text)
    before = Path("runs/old.db").read_bytes()
    result = _dashboard()
    assert result.exit_code == 2
    assert "must be brought to" in result.stderr
    assert Path("runs/old.db").read_bytes() == before


def _answer(address: str) -> str:
    with urllib.request.urlopen(address, timeout=30) as answer:
        return answer.read().decode()


@pytest.mark.parametrize("terminal", [True, False], ids=["terminal", "none"])
def test_make_dashboard_comes_up_without_a_question_for_somebody_new(folder: Path, terminal: bool) -> None:
    """As in a fresh clone whose environment is installed, with an empty home folder."""
    root, home = Path(__file__).parents[2], folder / "home"
    home.mkdir()
    _make("reference")
    for name in ("pyproject.toml", "constraints.txt"):
        (folder / name).touch()
    (folder / ".venv").mkdir()
    (folder / ".venv/.dashboard").touch()
    binaries, port = Path(sys.executable).parent, free_port()
    if not (binaries / "scope-calibrate").exists():
        pytest.skip("scope-calibrate is not installed here")
    command = ["make", "-f", str(root / "Makefile"), "dashboard", f"BIN={binaries}", f"OPTIONS=--port {port}"]
    ours, theirs = pty.openpty()
    ends = {"stdin": theirs, "stdout": theirs, "stderr": theirs} if terminal else {}
    nothing = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    server = subprocess.Popen(command, cwd=folder, env=newcomer(home), start_new_session=True, **(ends or nothing))
    address = f"http://127.0.0.1:{port}"
    try:
        wait_until_up(server, address)
        assert "<title>" in _answer(address)
    finally:
        os.killpg(server.pid, signal.SIGINT)
        server.wait(30)
        os.close(theirs)
    said = _read_all(ours) if terminal else server.stdout.read().decode()
    assert f"The dashboard is at {address}" in said
    assert not re.search("mail|Traceback|statistics|streamlit", said, re.IGNORECASE)
    assert not list(home.iterdir())


def _read_all(descriptor: int) -> str:
    found = b""
    with contextlib.suppress(OSError), os.fdopen(descriptor, "rb", buffering=0) as end:
        while part := end.read(4096):
            found += part
    return found.decode()
