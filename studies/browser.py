"""A real browser and a dashboard of its own to look at: for the benchmark and the pictures in the documentation."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CHROMIUM = Path("/usr/bin/chromium")
_START_SECONDS = 120.0


@contextlib.contextmanager
def dashboard(url: str, folder: Path, *options: str) -> Iterator[str]:
    """Runs `scope-calibrate dashboard` on a free port as somebody who never did before; gives its address.

    Args:
        url: The database's.
        folder: Working directory, from which the study's relative paths are read.
        options: Further ones of the command.
    """
    port = free_port()
    command = [sys.executable, "-m", "calibrate.cli", "dashboard", "--storage", url, "--port", str(port), *options]
    with tempfile.TemporaryDirectory() as home:
        server = subprocess.Popen(  # noqa: S603
            command,
            cwd=folder,
            env=newcomer(Path(home)),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        address = f"http://127.0.0.1:{port}"
        try:
            wait_until_up(server, address)
            yield address
        finally:
            server.terminate()
            server.wait()


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def newcomer(home: Path) -> dict[str, str]:
    """The environment of somebody with an empty home folder, and without a screen on which a browser would open."""
    unset = ("DISPLAY", "WAYLAND_DISPLAY", "XDG_CONFIG_HOME")
    kept = {name: value for name, value in os.environ.items() if name not in unset}
    return {**kept, "HOME": str(home), "BROWSER": "true", "PYTHONPATH": str(Path(__file__).parents[1])}


@contextlib.contextmanager
def chromium(**context: Any) -> Iterator[Any]:
    """A page in Debian's chromium.

    Args:
        context: Options of Playwright's `new_context`, such as `viewport` and `color_scheme`.
    """
    from playwright.sync_api import sync_playwright

    arguments = ["--no-sandbox", "--disable-dev-shm-usage", "--autoplay-policy=no-user-gesture-required"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=arguments)
        try:
            yield browser.new_context(**context).new_page()
        finally:
            browser.close()


def wait_until_up(server: subprocess.Popen[bytes], address: str) -> None:
    """Returns once the dashboard answers.

    Raises:
        RuntimeError: If it ends instead, or takes longer than two minutes.
    """
    health = f"{address}/_stcore/health"
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise RuntimeError(f"the dashboard ended at once, with exit code {server.returncode}")
        with contextlib.suppress(OSError), urllib.request.urlopen(health, timeout=5) as answer:  # noqa: S310
            if answer.status == 200:
                return
        time.sleep(0.2)
    raise RuntimeError("the dashboard did not come up")
