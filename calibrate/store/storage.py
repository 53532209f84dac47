"""One database for our tables and Optuna's: opening it, working on it, and waiting for it where that helps."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import filelock
from sqlalchemy import URL, Engine, create_engine, event, false, insert, inspect, select, text
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.orm import Session, sessionmaker

from calibrate.errors import CalibrateError
from calibrate.store import schema
from calibrate.store.address import database_file, masked_url, parse_url
from calibrate.store.failure import DatabaseFailed, database_failure, passes, reported
from calibrate.store.models import Environment

T = TypeVar("T")

# How long SQLite itself waits for another process before it reports that the database is locked.
_BUSY_SECONDS = 10
# How long a database that is locked or was lost is waited for, and how often it is tried again.
WAIT_SECONDS = 120.0
_POLL_SECONDS = 1.0
# Seconds after which a server that has vanished without a word is given up: TCP alone would wait for a quarter of an
# hour.
_SILENCE_SECONDS = 60
# Names our lock among all advisory locks of a PostgreSQL database: "SCOPE" in ASCII.
_LOCK_KEY = 0x53434F5045


class Storage:
    """An open database.

    Every access goes through `transaction` or `patiently`, which wait for a database that is locked or lost, or through
    `reading`, which does not. All turn what it reports into one sentence.

    Attributes:
        url: Where it is; print it through `masked_url` only.
        engine: For our tables.
        sessions: Makes sessions on `engine`.
    """

    def __init__(
        self,
        url: str,
        *,
        create: bool = True,
        read_only: bool = False,
        told: Callable[[str], None] | None = None,
        wait_seconds: float = WAIT_SECONDS,
    ) -> None:
        """Opens the database, makes missing tables and brings old ones up to date.

        Args:
            url: An SQLAlchemy URL, SQLite or PostgreSQL (`postgresql+psycopg://...`).
            create: Whether a missing SQLite file is made; readers that expect one pass False.
            read_only: Whether the database itself refuses every write; nothing is made then, tables included.
            told: Told in one line that the database is waited for, and that it is back. Without it, nothing is waited
                for.
            wait_seconds: How long one that is locked or lost is waited for.

        Raises:
            CalibrateError: If the URL or its driver is wrong, the database cannot be reached or written, or was made
                by a newer version of this program.
        """
        self.url = parse_url(url)
        self.wait_seconds = wait_seconds if told else 0.0
        self._told = told or (lambda _line: None)
        self._opened = False
        self._lost_since: float | None = None
        self._here = threading.local()
        mode = self.url.query.get("mode", "rwc")
        file = database_file(self.url)
        if file is not None:
            _prepare_file(file, create and not read_only and mode == "rwc")
        if mode == "ro" and create and not read_only:
            raise CalibrateError("storage: mode=ro lets nothing be recorded; remove it from the URL.")
        read_only = read_only or mode == "ro"

        def open_engine() -> Engine:
            return create_engine(opening_url(self.url, read_only), **engine_options(self.url, read_only))

        self.engine = self.patiently(open_engine)
        if file is not None and not read_only:
            event.listen(self.engine, "connect", _configure_sqlite)
        self.sessions = sessionmaker(self.engine, expire_on_commit=False)
        self.patiently(self._require_up_to_date if read_only else self._bring_up_to_date)
        self._opened = True

    @staticmethod
    def probe(url: str) -> None:
        """Makes sure that a database can be used, without making one.

        Raises:
            CalibrateError: If it cannot.
        """
        parsed = parse_url(url)
        path = database_file(parsed)
        if path is None or path.is_file():
            storage = Storage(url, create=False)
            try:
                storage.require_writable()
            finally:
                storage.close()
            return
        folder = next(folder for folder in Path(os.path.realpath(path)).parents if folder.exists())
        if not folder.is_dir() or not os.access(folder, os.W_OK):
            raise CalibrateError(f"storage: {path} cannot be made in {folder}; choose another path.")

    def transaction(self, work: Callable[[Session], T], *, wait: bool = True) -> T:
        """Does work in one transaction, which is committed at its end.

        Work that the database was lost in is done again, so it must bear that the first time counted after all: a
        server can be lost after it has committed and before it has said so.

        Args:
            work: Told the session.
            wait: Whether a database that is locked or lost is waited for.

        Raises:
            IntegrityError: If a row is there already.
            DatabaseFailed: In place of everything else that a database reports.
        """

        def once() -> T:
            with self.sessions.begin() as session:
                return work(session)

        return self.patiently(once, wait=wait)

    def patiently(self, work: Callable[[], T], *, wait: bool = True) -> T:
        """Does something with this database, again if it is locked or lost; for what is no plain `transaction`.

        Raises:
            DatabaseFailed: If it cannot be used, or not again within `wait_seconds`.
        """
        if getattr(self._here, "busy", False):
            # Within another piece of work, which is done again as a whole.
            return work()
        while True:
            self._here.busy = True
            try:
                done = work()
            except Exception as error:
                failure = reported(error)
                if failure is None:
                    raise
                if not passes(failure, opened=self._opened):
                    raise DatabaseFailed(self.explain(failure)) from error
                if not wait or not self._worth_waiting(failure):
                    raise DatabaseFailed(self.explain(failure)) from error
            else:
                if self._lost_since is not None:
                    self._lost_since = None
                    self._told("The database is back.")
                return done
            finally:
                self._here.busy = False
            time.sleep(_POLL_SECONDS)

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A session for those who read much at once, which is not waited for.

        Raises:
            DatabaseFailed: In place of everything that a database reports.
        """
        try:
            with self.sessions() as session:
                yield session
        except Exception as error:
            failure = reported(error)
            if failure is None:
                raise
            raise DatabaseFailed(self.explain(failure)) from error

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keeps other processes from changing tables meanwhile; the system ends it with the process, whatever happens.

        SQLite files are guarded by a lock file beside them, servers by a lock of their own.

        Raises:
            CalibrateError: If another process keeps the lock, or the folder of the database cannot be written.
        """
        file = database_file(self.url)
        if file is not None:
            try:
                with filelock.FileLock(f"{file}.lock", timeout=WAIT_SECONDS):
                    yield
            except filelock.Timeout as error:
                raise CalibrateError(f"storage: another process keeps {file}.lock; wait for it or stop it.") from error
            except PermissionError as error:
                raise CalibrateError(
                    f"storage: {masked_url(self.url)}: the folder of the database cannot be written; choose another "
                    "path, or change its permissions."
                ) from error
            return
        with self.engine.connect() as connection:
            connection.execute(text(f"SET LOCAL lock_timeout = {int(WAIT_SECONDS * 1000)}"))
            connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": _LOCK_KEY})
            try:
                yield
            finally:
                connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": _LOCK_KEY})

    def has_table(self, name: str) -> bool:
        """Whether a table is there."""
        return self.patiently(lambda: inspect(self.engine).has_table(name))

    def explain(self, failure: BaseException) -> str:
        """One sentence for a failure of this database, without its password."""
        return f"storage: {masked_url(self.url)}: {database_failure(failure)}"

    def require_file(self) -> None:
        """Checks that an SQLite file has not been moved away: an open connection would go on reading it.

        Raises:
            CalibrateError: If it has.
        """
        file = database_file(self.url)
        if file is not None and not file.exists():
            raise CalibrateError(f"storage: {masked_url(self.url)}: the database file is no longer there.")

    def require_writable(self) -> None:
        """Checks that records may be made, without making one.

        Raises:
            DatabaseFailed: If not.
        """
        columns = [column for column in Environment.__table__.columns if not column.primary_key]
        nothing = select(*columns).where(false())
        self.transaction(lambda session: session.execute(insert(Environment).from_select(columns, nothing)))

    def close(self) -> None:
        """Closes all connections."""
        self.engine.dispose()

    def _worth_waiting(self, failure: BaseException) -> bool:
        """Whether the time for waiting is not over yet; the first time, says that the database is waited for."""
        if not self.wait_seconds:
            return False
        now = time.monotonic()
        if self._lost_since is None:
            self._lost_since = now
            self._told(
                f"{database_failure(failure)[0].upper()}{database_failure(failure)[1:]} Waiting for it, for up to "
                f"{self.wait_seconds:.0f} seconds."
            )
        return now - self._lost_since < self.wait_seconds

    def _bring_up_to_date(self) -> None:
        with self.engine.connect() as connection:
            if schema.revision_of(connection) == schema.REVISION:
                return
        with self.alone(), self.engine.begin() as connection:
            if self.url.get_backend_name() == "sqlite":
                # Python's driver begins no transaction for changes of tables: a process killed here would leave half of
                # them, which nobody could open any more.
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            try:
                schema.upgrade(connection)
            except schema.NewerSchema as newer:
                raise self._newer(str(newer)) from newer

    def _require_up_to_date(self) -> None:
        with self.engine.connect() as connection:
            revision = schema.revision_of(connection)
        if revision is None:
            raise CalibrateError(
                f"storage: {masked_url(self.url)} holds no studies yet; start one with `scope-calibrate run`."
            )
        if revision > schema.REVISION:
            raise self._newer(revision)
        if revision < schema.REVISION:
            raise CalibrateError(
                f"storage: {masked_url(self.url)}: the database has schema version {revision} and must be brought to "
                f"{schema.REVISION} first; `scope-calibrate status` on one of its studies does that."
            )

    def _newer(self, revision: str) -> CalibrateError:
        return CalibrateError(
            f"storage: {masked_url(self.url)}: the database has schema version {revision} and this program knows "
            f"{schema.REVISION}; update scope-calibrate or use another database."
        )


def _prepare_file(path: Path, create: bool) -> None:
    """Makes the folder of an SQLite file, or says that there is no such file."""
    if not create and not path.exists():
        raise CalibrateError(f"storage: {path} does not exist yet; start the study with `scope-calibrate run`.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CalibrateError(f"storage: the folder {path.parent} cannot be made; choose another path.") from error


def opening_url(url: URL, read_only: bool = False) -> URL:
    """What the driver is given: for a file, SQLite's own form, which no name can be mistaken in."""
    file = database_file(url)
    if file is None:
        return url
    mode = "ro" if read_only else str(url.query.get("mode", "rwc"))
    return URL.create("sqlite", database=f"file:{quote(os.path.realpath(file))}", query={"mode": mode, "uri": "true"})


def engine_options(url: URL, read_only: bool = False) -> dict[str, Any]:
    """What else `sqlalchemy.create_engine` is given: how long to wait for a lock, when to give up a silent server."""
    if url.get_backend_name() == "sqlite":
        return {"connect_args": {"timeout": float(str(url.query.get("timeout", _BUSY_SECONDS)))}}
    options: dict[str, Any] = {
        "connect_timeout": 10,
        "keepalives_idle": _SILENCE_SECONDS // 2,
        "keepalives_interval": _SILENCE_SECONDS // 6,
        "keepalives_count": 3,
        "tcp_user_timeout": _SILENCE_SECONDS * 1000,
    }
    # What the URL says goes first.
    options = {name: value for name, value in options.items() if name not in url.query}
    if read_only:
        said = url.query.get("options", "")
        options["options"] = f"{said} -c default_transaction_read_only=on".strip()
    return {"pool_pre_ping": True, "connect_args": options}


def _configure_sqlite(connection: DBAPIConnection, _record: object) -> None:
    """Lets readers and one writer work side by side, and makes SQLite honour foreign keys."""
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()
