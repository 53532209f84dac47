"""Starts the dashboard: a Streamlit server that only reads, by default for this machine alone."""

from __future__ import annotations

import importlib.util
import os
import socket
import sys
from pathlib import Path
from typing import NoReturn

from sqlalchemy import URL

from calibrate.errors import CalibrateError
from calibrate.store import Storage

# By its environment, not its arguments, which other users of the machine could read: the URL may hold a password.
STORAGE_VARIABLE = "SCOPE_DASHBOARD_STORAGE"


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


def serve(url: str, address: str, port: int, *, headless: bool) -> NoReturn:
    """Becomes the dashboard's server: signals reach it directly, and nothing is left behind when it is stopped.

    Args:
        url: The database's.
        address: To listen on.
        port: To listen on.
        headless: Whether to leave the browser alone.

    Raises:
        CalibrateError: If the dashboard is not installed, the database cannot be read or the port is taken.
    """
    _require_installed()
    storage = Storage(url, read_only=True)
    absolute = _absolute(storage.url)
    storage.close()
    _require_free(address, port)
    options = {
        "server.address": address,
        "server.port": str(port),
        "server.headless": str(headless).lower(),
        "server.fileWatcherType": "none",
        "browser.gatherUsageStats": "false",
        "client.toolbarMode": "minimal",
        "client.showErrorDetails": "none",
        # Not the theme as a whole: that would fix its base, and the browser's light or dark would be ignored.
        "theme.light.primaryColor": "#0072B2",
        # White on it, as on buttons, and it on the dark page are both readable.
        "theme.dark.primaryColor": "#2A86C7",
    }
    arguments = [f"--{name}={value}" for name, value in options.items()]
    command = [sys.executable, "-m", "dashboard", *arguments]
    os.execve(sys.executable, command, os.environ | {STORAGE_VARIABLE: absolute})  # noqa: S606


def _require_installed() -> None:
    if any(importlib.util.find_spec(name) is None for name in ("streamlit", "plotly", "dashboard")):
        raise CalibrateError("The dashboard is not installed: pip install 'scope-calibrate[dashboard]'.")


def _absolute(url: URL) -> str:
    if url.get_backend_name() == "sqlite":
        url = url.set(database=str(Path(str(url.database)).resolve()))
    return url.render_as_string(hide_password=False)


def _require_free(address: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError as error:
            raise CalibrateError(f"--port: {address}:{port} cannot be listened on; choose another port.") from error
