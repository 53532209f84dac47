"""Starts the dashboard: a Streamlit server that only reads, by default for this machine alone."""

from __future__ import annotations

import importlib.util
import os
import re
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from sqlalchemy import URL

from calibrate.errors import CalibrateError
from calibrate.store import Storage

# By its environment, not its arguments, which other users of the machine could read: the URL may hold a password.
STORAGE_VARIABLE = "SCOPE_DASHBOARD_STORAGE"
# Folders beside the default ones from which the page may show clips, separated as in PATH.
CACHES_VARIABLE = "SCOPE_DASHBOARD_CACHES"

_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?|[0-9A-Fa-f:]+")


def default_storage(folder: Path = Path("runs")) -> str:
    """The one database in `runs/`.

    Raises:
        CalibrateError: If there is none, or there are several to choose from.
    """
    found = sorted(folder.glob("*.db"))
    if not found:
        raise CalibrateError(
            f"--storage: there is no database in {folder}/; start a study with `scope-calibrate run`, or name the "
            "URL of a database."
        )
    if len(found) > 1:
        names = ", ".join(f"sqlite:///{path}" for path in found)
        raise CalibrateError(f"--storage: there are several databases in {folder}/; name one of {names}.")
    return f"sqlite:///{found[0]}"


def serve(
    url: str,
    address: str,
    port: int,
    *,
    headless: bool,
    hosts: Sequence[str] = (),
    caches: Sequence[Path] = (),
) -> NoReturn:
    """Becomes the dashboard's server: signals reach it directly, and nothing is left behind when it is stopped.

    Args:
        url: The database's.
        address: To listen on.
        port: To listen on.
        headless: Whether to leave the browser alone.
        hosts: Names under which it is asked for beside the address and this machine's own, such as a proxy's.
        caches: Folders beside the default ones from which the page may show clips.

    Raises:
        CalibrateError: If the dashboard is not installed, the database cannot be read, a host is no name, a folder is
            not there, or the port is taken.
    """
    _require_installed()
    for host in hosts:
        if not _HOST.fullmatch(host):
            raise CalibrateError(f"--allow-host: {host!r} is no host name; write it without port, as in lab.example.")
    for folder in caches:
        if not folder.is_dir():
            raise CalibrateError(f"--cache: there is no folder {folder}; name one that holds a study's cache.")
    storage = Storage(url, read_only=True)
    absolute = _absolute(storage.url)
    storage.close()
    _require_free(address, port)
    command = [sys.executable, "-m", "dashboard", "--address", address, "--port", str(port)]
    command += [word for host in hosts for word in ("--allow-host", host)]
    command += ["--headless"] if headless else []
    named = os.pathsep.join(os.path.realpath(folder) for folder in caches)
    os.execve(sys.executable, command, os.environ | {STORAGE_VARIABLE: absolute, CACHES_VARIABLE: named})  # noqa: S606


def _require_installed() -> None:
    if any(importlib.util.find_spec(name) is None for name in ("streamlit", "dashboard")):
        raise CalibrateError("The dashboard is not installed: pip install 'scope-calibrate[dashboard]'.")


def _absolute(url: URL) -> str:
    if url.get_backend_name() == "sqlite":
        url = url.set(database=os.path.realpath(str(url.database)))
    return url.render_as_string(hide_password=False)


def _require_free(address: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError as error:
            raise CalibrateError(f"--port: {address}:{port} cannot be listened on; choose another port.") from error
