"""One driver per study: a lock that ends with its process, however that ends."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from typing import Self

import filelock
from sqlalchemy import Connection, text
from sqlalchemy.exc import SQLAlchemyError

from calibrate.errors import CalibrateError
from calibrate.store.address import database_file
from calibrate.store.storage import Storage
from calibrate.store.store import Store

# The first of the two numbers of our advisory locks in PostgreSQL; the second is the study's.
_LOCK_CLASS = 0x5C09E
# A look at whether a study is free holds its lock for a moment, which must not end a driver that starts just then.
_WAIT_SECONDS = 2.0
_POLL_SECONDS = 0.1


class StudyLock:
    """Held by the one process that decides and writes for a study; to be used in a `with` block."""

    def __init__(self, store: Store) -> None:
        """Takes nothing yet."""
        self._store = store
        self._lock = _FileLock(store) if database_file(store.storage.url) else _ServerLock(store)

    def __enter__(self) -> Self:
        if not self._lock.take(_WAIT_SECONDS):
            raise self._taken()
        return self

    def __exit__(self, *_error: object) -> None:
        self._lock.release()

    def require(self) -> None:
        """Makes sure that it is still held: a server that was started again has forgotten it.

        Raises:
            CalibrateError: If another process has it now.
        """
        if not self._lock.take(0.0):
            raise self._taken()

    def is_taken(self) -> bool:
        """Whether another process holds it."""
        return self._lock.is_taken()

    def _taken(self) -> CalibrateError:
        record = self._store.driver()
        by = f" by process {record.process} on {record.host}" if record else ""
        return CalibrateError(
            f"name: study {self._store.study.name!r} is being run{by}; wait for it, or stop it first. More devices are "
            "given to that one run, with --devices or --ray."
        )


class _FileLock:
    """Beside an SQLite file."""

    def __init__(self, store: Store) -> None:
        self._path = f"{database_file(store.storage.url)}.{store.study.id}.lock"
        self._lock = filelock.FileLock(self._path)

    def take(self, wait: float) -> bool:
        if not self._lock.is_locked:
            try:
                self._lock.acquire(timeout=wait)
            except filelock.Timeout:
                return False
        return True

    def release(self) -> None:
        self._lock.release()

    def is_taken(self) -> bool:
        if not os.path.exists(self._path):  # noqa: PTH110 - a name of any length
            return False
        try:
            with filelock.FileLock(self._path, timeout=0):
                return False
        except filelock.Timeout:
            return True
        except OSError:  # a reader without the right to write
            return False


class _ServerLock:
    """An advisory lock of a PostgreSQL session, on a connection of its own."""

    def __init__(self, store: Store) -> None:
        self._storage: Storage = store.storage
        self._key = {"class": _LOCK_CLASS, "study": store.study.id}
        self._connection: Connection | None = None

    def take(self, wait: float) -> bool:
        def once() -> bool:
            if self._connection is not None:
                try:
                    self._connection.execute(text("SELECT 1"))
                    return True
                except SQLAlchemyError:
                    self.release()
                    raise
            connection = self._storage.engine.connect().execution_options(isolation_level="AUTOCOMMIT")
            if connection.scalar(text("SELECT pg_try_advisory_lock(:class, :study)"), self._key):
                self._connection = connection
                return True
            connection.close()
            return False

        deadline = time.monotonic() + wait
        while not (taken := self._storage.patiently(once)) and time.monotonic() < deadline:
            # The server may not have noticed yet that the last one has gone.
            time.sleep(_POLL_SECONDS)
        return taken

    def release(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(SQLAlchemyError):
                connection.execute(text("SELECT pg_advisory_unlock(:class, :study)"), self._key)
            # If that did not get through, the session must end, and not be used for something else with its lock.
            with suppress(SQLAlchemyError):
                connection.invalidate()
                connection.close()

    def is_taken(self) -> bool:
        query = text(
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted AND classid = :class "
            "AND objid = :study AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        )
        return bool(self._storage.transaction(lambda session: session.scalar(query, self._key)))
