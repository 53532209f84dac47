"""A real browser and a dashboard of its own to look at: for the benchmark and the pictures in the documentation."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CHROMIUM = Path("/usr/bin/chromium")
_START_SECONDS = 120.0


@contextlib.contextmanager
def dashboard(url: str, folder: Path) -> Iterator[str]:
    """Runs `scope-calibrate dashboard` on a free port; gives its address.

    Args:
        url: The database's.
        folder: Working directory, from which the study's relative paths are read.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "calibrate.cli", "dashboard", "--storage", url, "--port", str(port), "--headless"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    server = subprocess.Popen(  # noqa: S603
        command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    address = f"http://127.0.0.1:{port}"
    try:
        _wait_until_up(server, f"{address}/_stcore/health")
        yield address
    finally:
        server.terminate()
        server.wait()


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


def _wait_until_up(server: subprocess.Popen[bytes], health: str) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise RuntimeError(f"the dashboard ended at once, with exit code {server.returncode}")
        with contextlib.suppress(OSError), urllib.request.urlopen(health, timeout=5) as answer:  # noqa: S310
            if answer.status == 200:
                return
        time.sleep(0.2)
    raise RuntimeError("the dashboard did not come up")
