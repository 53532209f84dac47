"""Where a database is: reading its URL, the file behind it, and showing either without secrets."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote

import sqlalchemy.exc
from sqlalchemy import URL, make_url

from calibrate.errors import CalibrateError

_FORMS = "sqlite:///runs/study.db or postgresql+psycopg://user@host/database"
_ENCODE = "percent-encode the password (@ is %40, / is %2F) or leave it out and use PGPASSWORD or ~/.pgpass"
# Parts of a query that are shown; every other one may be a secret.
_SHOWN = {"application_name", "connect_timeout", "host", "mode", "port", "sslmode", "target_session_attrs", "timeout"}
# What may be said about an SQLite file; everything else would change which file it is, or how it is locked.
_SQLITE_QUERY = {"mode", "timeout"}
_MODES = ("ro", "rw", "rwc")

_BARE_PATH = re.compile(r"^[\w./-]+\.(db|sqlite3?)$")
# The kinds of URL that are known, and the driver that each is opened with.
_DRIVERS = {
    "sqlite": "sqlite",
    "sqlite+pysqlite": "sqlite",
    "postgresql": "postgresql+psycopg",
    "postgresql+psycopg": "postgresql+psycopg",
    "postgresql+psycopg2": "postgresql+psycopg2",
}

_URL_PASSWORD = re.compile(r"(?P<user>[A-Za-z][A-Za-z0-9+.-]*://[^:/@\s'\"]*):[^\s'\"]*@")
_QUERY_SECRET = re.compile(r"(?P<name>[?&][^=&\s]*(?:pass|secret|token)[^=&\s]*=)[^&\s'\"]*", re.IGNORECASE)


def parse_url(url: str) -> URL:
    """The URL of a database, in one form for every way to write it.

    SQLite files come back as their plain path, with ``mode`` and ``timeout`` alone as a query.

    Raises:
        CalibrateError: If it is no URL of an SQLite file or of a PostgreSQL database, or holds a password that is not
            encoded; no part of the URL is in the message then.
    """
    if not url.startswith("sqlite"):
        _refuse_unencoded(url)
    try:
        parsed = make_url(url)
    except (sqlalchemy.exc.ArgumentError, ValueError) as error:
        hint = ""
        if "@" in url:
            hint = f"; if it is one, {_ENCODE}"
        elif _BARE_PATH.match(url):
            hint = f", for this file sqlite:///{url}"
        raise CalibrateError(f"storage: this is not a database URL; write for example {_FORMS}{hint}.") from error
    if parsed.drivername not in _DRIVERS:
        raise CalibrateError(
            "storage: there is no driver for this kind of URL; write sqlite:/// and a file, or postgresql+psycopg:// "
            "and install scope-calibrate[postgres]."
        )
    parsed = parsed.set(drivername=_DRIVERS[parsed.drivername])
    return _plain_sqlite(parsed) if parsed.drivername == "sqlite" else parsed


def database_file(url: str | URL) -> Path | None:
    """The SQLite file that a URL means, as given; None for a server.

    Raises:
        CalibrateError: See `parse_url`.
    """
    parsed = parse_url(url) if isinstance(url, str) else url
    return Path(str(parsed.database)) if parsed.get_backend_name() == "sqlite" else None


def masked_url(url: str | URL) -> str:
    """The URL with its password, also one given as a query parameter, replaced by asterisks."""
    parsed = parse_url(url) if isinstance(url, str) else url
    secrets = {key: "***" for key in parsed.query if key not in _SHOWN}
    return parsed.update_query_dict(secrets).render_as_string(hide_password=True)


def portable_url(url: str) -> str:
    """The URL for a file that others read: without password, and without the folders of an SQLite file."""
    file = database_file(url)
    return masked_url(url) if file is None else f"sqlite:///{file.name}"


def without_secrets(text: str) -> str:
    """Any text, with the passwords of all URLs in it replaced by asterisks."""
    return _QUERY_SECRET.sub(r"\g<name>***", _URL_PASSWORD.sub(r"\g<user>:***@", text))


def has_secrets(url: str) -> bool:
    """Whether a URL holds anything that must not be shown or stored."""
    parsed = parse_url(url)
    return parsed.password is not None or any(key not in _SHOWN for key in parsed.query)


def _refuse_unencoded(url: str) -> None:
    """Refuses an @ in a user, a password or a query: what follows it would be taken for the host, and be shown."""
    before_query, _, query = url.partition("?")
    if before_query.count("@") > 1 or "@" in query:
        raise CalibrateError(f"storage: the URL holds an @ besides the one before the host; {_ENCODE}.")


def _plain_sqlite(url: URL) -> URL:
    if url.host or url.username or url.port:
        raise CalibrateError(
            "storage: an SQLite URL has three slashes before a relative path and four before an absolute one; write "
            "for example sqlite:///runs/study.db."
        )
    query = {name: value if isinstance(value, str) else value[-1] for name, value in url.query.items()}
    file = url.database or ""
    if query.pop("uri", "false").lower() in ("true", "1", "yes", "on") and file.startswith("file:"):
        file = unquote(re.sub(r"^file:(//(localhost)?(?=/))?", "", file).partition("#")[0])
    if not file or file == ":memory:" or query.get("mode") == "memory":
        raise CalibrateError(
            "storage: SQLite needs a file to keep a study in; write for example sqlite:///runs/study.db."
        )
    if unknown := query.keys() - _SQLITE_QUERY:
        raise CalibrateError(f"storage: {min(unknown)} is not known for an SQLite file; remove it from the URL.")
    if query.get("mode", "rwc") not in _MODES:
        raise CalibrateError("storage: mode must be ro, rw or rwc.")
    if not query.get("timeout", "1").replace(".", "", 1).isdigit():
        raise CalibrateError("storage: timeout must be a number of seconds.")
    return URL.create("sqlite", database=file, query=query)
