"""One database for our tables and Optuna's: opening it, and saying plainly why it cannot be opened."""

from __future__ import annotations

import os
import re
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import optuna
import sqlalchemy.exc
from filelock import FileLock
from sqlalchemy import URL, Engine, create_engine, event, func, make_url, select, text
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.orm import Session, sessionmaker

from calibrate.errors import CalibrateError
from calibrate.store import schema

_SECRET = re.compile("pass|token|secret", re.IGNORECASE)
# How long a writer waits for another one before SQLite reports "database is locked".
_BUSY_SECONDS = 60
# Names our lock among all advisory locks of a PostgreSQL database: "SCOPE" in ASCII.
_LOCK_KEY = 0x53434F5045


@dataclass(frozen=True)
class Heartbeat:
    """How a process shows that it lives.

    Attributes:
        interval: Seconds between two signs of life.
        grace: Seconds of silence after which it is taken for dead and others take over its work.
    """

    interval: int = 30
    grace: int = 120


class Storage:
    """An open database.

    Attributes:
        url: Where it is; print it through `masked_url` only.
        engine: For our tables.
        sessions: Makes sessions on `engine`.
    """

    def __init__(self, url: str, *, create: bool = True, read_only: bool = False) -> None:
        """Opens the database, makes missing tables and brings old ones up to date.

        Args:
            url: An SQLAlchemy URL, SQLite or PostgreSQL (`postgresql+psycopg://...`).
            create: Whether a missing SQLite file is made; readers that expect one pass False.
            read_only: Whether the database itself refuses every write; nothing is made then, tables included.

        Raises:
            CalibrateError: If the URL or its driver is wrong, the database cannot be reached or written, or was made
                by a newer version of this program.
        """
        self.url = _parse(url)
        if self.url.get_backend_name() == "sqlite":
            _prepare_file(self.url, create and not read_only)
        try:
            self.engine = _read_only_engine(self.url) if read_only else _engine(self.url)
            self.sessions = sessionmaker(self.engine, expire_on_commit=False)
            if read_only:
                self._require_up_to_date()
            else:
                self._bring_up_to_date()
        except (sqlalchemy.exc.SQLAlchemyError, ModuleNotFoundError) as error:
            raise CalibrateError(self.explain(error)) from error

    @staticmethod
    def probe(url: str) -> None:
        """Makes sure that a database can be used, without making one.

        Raises:
            CalibrateError: If it cannot.
        """
        parsed = _parse(url)
        path = Path(parsed.database or "")
        if parsed.get_backend_name() != "sqlite" or path.is_file():
            Storage(url, create=False).close()
            return
        _refuse_memory(parsed)
        folder = next(folder for folder in path.resolve().parents if folder.exists())
        if not folder.is_dir() or not os.access(folder, os.W_OK):
            raise CalibrateError(f"storage: {path} cannot be made in {folder}; choose another path.")

    def optuna(self, heartbeat: Heartbeat | None = None) -> optuna.storages.RDBStorage:
        """Optuna's own storage, in the same database.

        Args:
            heartbeat: How running trials show that they live; None for those who only read.
        """
        try:
            # Optuna makes its tables one by one; two processes that do so at once would trip over each other.
            with self._alone():
                return optuna.storages.RDBStorage(
                    self.url.render_as_string(hide_password=False),
                    engine_kwargs=_engine_options(self.url),
                    heartbeat_interval=heartbeat.interval if heartbeat else None,
                    grace_period=heartbeat.grace if heartbeat else None,
                )
        except (sqlalchemy.exc.SQLAlchemyError, RuntimeError) as error:
            raise CalibrateError(self.explain(error)) from error

    def now(self, session: Session) -> datetime:
        """The time that all processes on this database agree on: the server's, or for a file this machine's."""
        if self.url.get_backend_name() == "sqlite":
            return datetime.now(UTC)
        return session.execute(select(func.clock_timestamp())).scalar_one()

    def explain(self, error: Exception) -> str:
        """One sentence for a failure of this database, without its password."""
        return f"storage: {masked_url(self.url)}: {database_failure(error)}"

    def require_file(self) -> None:
        """Checks that an SQLite file has not been moved away: an open connection would go on reading it.

        Raises:
            CalibrateError: If it has.
        """
        if self.url.get_backend_name() == "sqlite" and not Path(str(self.url.database)).exists():
            raise CalibrateError(f"storage: {masked_url(self.url)}: the database file is no longer there.")

    def close(self) -> None:
        """Closes all connections."""
        self.engine.dispose()

    def _bring_up_to_date(self) -> None:
        with self.engine.connect() as connection:
            if schema.revision_of(connection) == schema.REVISION:
                return
        with self._alone(), self.engine.begin() as connection:
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

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keeps other processes from changing tables meanwhile; the system ends it with the process, whatever happens.

        SQLite files are guarded by a lock file beside them, servers by a lock of their own.
        """
        if self.url.get_backend_name() == "sqlite":
            with FileLock(f"{self.url.database}.lock"):
                yield
            return
        with self.engine.connect() as connection:
            connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": _LOCK_KEY})
            try:
                yield
            finally:
                connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": _LOCK_KEY})


def masked_url(url: str | URL) -> str:
    """The URL with its password, also one given as a query parameter, replaced by asterisks."""
    parsed = make_url(url)
    secrets = {key: "***" for key in parsed.query if _SECRET.search(key)}
    return parsed.update_query_dict(secrets).render_as_string(hide_password=True)


def database_failure(error: BaseException) -> str:
    """One sentence for what a database or its driver reports; never its text, which may repeat the password."""
    if isinstance(error, (sqlalchemy.exc.NoSuchModuleError, ModuleNotFoundError)):
        return (
            "no driver for this kind of URL is installed; for PostgreSQL write postgresql+psycopg:// and install "
            "scope-calibrate[postgres]."
        )
    original = getattr(error, "orig", None) or error
    if isinstance(original, sqlite3.Error):
        return _sqlite_cause(str(original))
    if isinstance(error, sqlalchemy.exc.OperationalError):
        return "the database cannot be reached; check the address, the user and that the server runs."
    return f"the database refused the request ({type(original).__name__}); check the URL and the user's rights."


def portable_url(url: str) -> str:
    """The URL for a file that others read: without password, and without the folders of an SQLite file."""
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite" and parsed.database:
        return f"sqlite:///{Path(parsed.database).name}"
    return masked_url(parsed)


def _parse(url: str) -> URL:
    try:
        return make_url(url)
    except (sqlalchemy.exc.ArgumentError, ValueError) as error:
        raise CalibrateError(
            "storage: this is not a database URL; write for example sqlite:///runs/study.db or "
            "postgresql+psycopg://user@host/database."
        ) from error


def _prepare_file(url: URL, create: bool) -> None:
    """Makes the folder of an SQLite file, or says that there is no such file."""
    _refuse_memory(url)
    path = Path(url.database or "")
    if not create and not path.exists():
        raise CalibrateError(f"storage: {path} does not exist yet; start the study with `scope-calibrate run`.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
        raise CalibrateError(f"storage: the folder {path.parent} cannot be made; choose another path.") from error


def _refuse_memory(url: URL) -> None:
    if not url.database or url.database == ":memory:":
        raise CalibrateError(
            "storage: SQLite needs a file to keep a study in; write for example sqlite:///runs/study.db."
        )


def _engine_options(url: URL) -> dict[str, Any]:
    if url.get_backend_name() == "sqlite":
        return {"connect_args": {"timeout": _BUSY_SECONDS}}
    return {"pool_pre_ping": True, "connect_args": {"connect_timeout": 10}}


def _engine(url: URL) -> Engine:
    engine = create_engine(url, **_engine_options(url))
    if url.get_backend_name() == "sqlite":
        event.listen(engine, "connect", _configure_sqlite)
    return engine


def _read_only_engine(url: URL) -> Engine:
    """An engine whose every transaction the database itself keeps from writing."""
    options = _engine_options(url)
    if url.get_backend_name() == "sqlite":
        path = quote(str(Path(str(url.database)).resolve()))
        return create_engine(
            URL.create("sqlite", database=f"file:{path}", query={"mode": "ro", "uri": "true"}), **options
        )
    options["connect_args"]["options"] = "-c default_transaction_read_only=on"
    return create_engine(url, **options)


def _configure_sqlite(connection: DBAPIConnection, _record: object) -> None:
    """Lets readers and one writer work side by side, and makes SQLite honour foreign keys."""
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _sqlite_cause(message: str) -> str:
    if "full" in message:
        return "the disk is full; free some space and run the same command again."
    if "readonly" in message or "unable to open" in message:
        return "the database file cannot be written; check its path and permissions."
    if "not a database" in message or "malformed" in message:
        return "the file is not an SQLite database; choose another path or move the file away."
    if "locked" in message:
        return "another process keeps the database locked; wait for it or stop it."
    return f"SQLite reports: {message}."
