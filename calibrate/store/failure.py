"""What databases report, each in one sentence, and whether it is worth waiting for it to pass."""

from __future__ import annotations

import json
import re
import sqlite3

import sqlalchemy.exc

from calibrate.errors import CalibrateError

_DAMAGED = "the database is damaged; restore it from a backup, or move it away and start the study again."
_RIGHTS = (
    "the database user may not do this; grant it CREATE on the schema, and SELECT, INSERT, UPDATE and DELETE on its "
    "tables."
)
_READ_ONLY = "the database takes no writes; name the primary server, not a standby, and a user that may write."
_FULL = "the disk of the database is full; free some space and run the same command again."
_FOREIGN = "its tables are not the ones that this program makes; use another database."
_LOCKED = "another process keeps the database locked; wait for it or stop it."
_GONE = "the database cannot be reached; check the address, the user and that the server runs."
_CROWDED = "the server takes no more connections; close some of them or raise its max_connections."
_NOT_UTF8 = "a text holds characters that no database keeps, such as NUL; remove them."

# By PostgreSQL's error codes, the whole code or its class.
_BY_STATE = {
    "42501": _RIGHTS,
    "25006": _READ_ONLY,
    "53100": _FULL,
    "53300": _CROWDED,
    "55P03": _LOCKED,
    "22P02": _DAMAGED,
    "58": _DAMAGED,
    "XX": _DAMAGED,
    "42P01": _FOREIGN,
    "42P07": _FOREIGN,
    "42703": _FOREIGN,
    "42804": _FOREIGN,
    "22021": _NOT_UTF8,
    "22P05": _NOT_UTF8,
    "08": _GONE,
    "57P": _GONE,
}
# A connection that fails has no code. Servers that speak another language get the general sentence.
_BY_MESSAGE = {
    "too many|connection slots": _CROWDED,
    "starting up|shutting down|not yet accepting|in recovery": "the server is starting or stopping; wait for it.",
    "permission denied for database": "the database user may not connect to it; grant it CONNECT.",
    "authentication failed|no password supplied": (
        "the user or the password is wrong; check PGPASSWORD, ~/.pgpass or the URL, where a password must be "
        "percent-encoded (@ is %40)."
    ),
    "does not exist": "there is no such database or user on the server; make it, or correct the URL.",
}
_BY_SQLITE_CODE = {
    sqlite3.SQLITE_FULL: _FULL,
    sqlite3.SQLITE_READONLY: "the database file or its folder cannot be written; check its path and permissions.",
    sqlite3.SQLITE_PERM: "the database file or its folder cannot be written; check its path and permissions.",
    sqlite3.SQLITE_CANTOPEN: "the database file or its folder cannot be written; check its path and permissions.",
    sqlite3.SQLITE_NOTADB: "the file is not an SQLite database; choose another path or move the file away.",
    sqlite3.SQLITE_CORRUPT: _DAMAGED,
    sqlite3.SQLITE_IOERR: "the database file cannot be read or written; check its disk.",
    sqlite3.SQLITE_BUSY: _LOCKED,
    sqlite3.SQLITE_LOCKED: _LOCKED,
    sqlite3.SQLITE_PROTOCOL: _LOCKED,
}
# What another process or a server that restarts may mend: locks, lost and refused connections.
_PASSING_SQLITE = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL}
_PASSING_STATES = {"08", "57P", "53300", "40001", "40P01", "55P03"}
# The pool of connections is used up; a connection was lost within a transaction, and what follows in it says only that.
_PASSING = (sqlalchemy.exc.TimeoutError, sqlalchemy.exc.PendingRollbackError, sqlalchemy.exc.ResourceClosedError)
_TIME = re.compile("isoformat|datetime|date string")
_SOON = re.compile("|".join(list(_BY_MESSAGE)[:2]))


class DatabaseFailed(CalibrateError):
    """The database cannot be used, or not any more."""


def reported(error: BaseException) -> BaseException | None:
    """What a database reported, or how its content cannot be read, out of an exception or its causes.

    None for everything else. A row that is there already is no failure, but an answer.
    """
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, (sqlalchemy.exc.IntegrityError, CalibrateError)):
            return None
        if _unreadable(found) or isinstance(found, (sqlalchemy.exc.DBAPIError, sqlalchemy.exc.StatementError)):
            return found
        if isinstance(found, (*_PASSING, sqlalchemy.exc.NoSuchModuleError, ModuleNotFoundError)):
            return found
        found = found.__cause__
    return None


def passes(failure: BaseException, *, opened: bool) -> bool:
    """Whether a failure may be over in a moment.

    Args:
        failure: See `reported`.
        opened: Whether the database was reached before; an address that never worked is more likely to be wrong.
    """
    if isinstance(failure, _PASSING):
        return True
    original = getattr(failure, "orig", None)
    if isinstance(original, sqlite3.Error):
        return _sqlite_code(original) in _PASSING_SQLITE
    if not isinstance(failure, sqlalchemy.exc.DBAPIError):
        return False
    state = getattr(original, "sqlstate", None) or getattr(original, "pgcode", None)
    if state is not None:
        return any(state.startswith(known) for known in _PASSING_STATES)
    if isinstance(failure, (sqlalchemy.exc.OperationalError, sqlalchemy.exc.InterfaceError)):
        return opened or bool(_SOON.search(str(original)))
    return failure.connection_invalidated


def database_failure(failure: BaseException) -> str:
    """One sentence for what a database or its driver reports; never its text, which may repeat the password."""
    if isinstance(failure, (sqlalchemy.exc.NoSuchModuleError, ModuleNotFoundError)):
        return (
            "no driver for this kind of URL is installed; for PostgreSQL write postgresql+psycopg:// and install "
            "scope-calibrate[postgres]."
        )
    original = getattr(failure, "orig", None) or failure
    if isinstance(original, sqlite3.Error):
        return _sqlite_cause(original)
    if isinstance(failure, sqlalchemy.exc.TimeoutError):
        return _CROWDED
    if isinstance(failure, _PASSING):
        return _GONE
    if isinstance(original, UnicodeEncodeError):
        return _NOT_UTF8
    if not isinstance(failure, sqlalchemy.exc.StatementError):
        return "what is recorded there cannot be read; " + _DAMAGED
    state = getattr(original, "sqlstate", None) or getattr(original, "pgcode", None)
    for known, said in _BY_STATE.items():
        if state is not None and state.startswith(known):
            return said
    if isinstance(failure, sqlalchemy.exc.OperationalError):
        return next((said for known, said in _BY_MESSAGE.items() if re.search(known, str(original))), _GONE)
    if isinstance(failure, sqlalchemy.exc.DataError) and "NUL" in str(original):
        return _NOT_UTF8
    return f"the database refused the request ({type(original).__name__}); check the URL and the user's rights."


def _unreadable(error: BaseException) -> bool:
    """Whether it is how a value is complained about that is not what its column should hold."""
    if isinstance(error, (json.JSONDecodeError, UnicodeError)):
        return True
    # SQLAlchemy's own types for choices and for times.
    return type(error) is LookupError or (type(error) is ValueError and bool(_TIME.search(str(error))))


def _sqlite_code(error: sqlite3.Error) -> int | None:
    code = getattr(error, "sqlite_errorcode", None)
    # The upper bits say more than is needed.
    return None if code is None else code & 0xFF


def _sqlite_cause(error: sqlite3.Error) -> str:
    said = _BY_SQLITE_CODE.get(_sqlite_code(error) or sqlite3.SQLITE_OK)
    if said is not None:
        return said
    message = str(error)
    if "no such" in message or "already exists" in message or "has no column" in message:
        return _FOREIGN
    if "decode" in message or "malformed" in message:
        return _DAMAGED
    return f"SQLite reports: {message}."
