"""The page's server: Streamlit's own, behind a gate, with everything off that it would ask, send or offer by itself."""

from __future__ import annotations

import os
import sys
import threading
import webbrowser
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import streamlit as st
from starlette.middleware import Middleware

from dashboard.gate import Gate

_OPTIONS = {
    "server.fileWatcherType": "none",
    "server.enableAgentApi": False,
    "browser.gatherUsageStats": False,
    "client.toolbarMode": "minimal",
    "client.showErrorDetails": "none",
    # Its greeting asks an outside service for the machine's address, and advertises.
    "logger.hideWelcomeMessage": True,
    # Not the theme as a whole: that would fix its base, and the browser's light or dark would be ignored.
    "theme.light.primaryColor": "#0072B2",
    # White on it, as on buttons, and it on the dark page are both readable.
    "theme.dark.primaryColor": "#2A86C7",
}


def run(address: str, port: int, hosts: Sequence[str], *, browser: bool) -> None:
    """Serves the page until it is told to stop. Unlike `streamlit run`, this asks nobody for an e-mail address.

    Args:
        address: To listen on.
        port: To listen on.
        hosts: See `dashboard.gate.Gate`.
        browser: Whether to open one, where there is a screen.
    """
    shown = "localhost" if address in ("0.0.0.0", "::") else f"[{address}]" if ":" in address else address  # noqa: S104
    url = f"http://{shown}:{port}"

    @asynccontextmanager
    async def greeting(_: st.App) -> AsyncIterator[None]:
        print(f"The dashboard is at {url} ; Ctrl-C ends it.", flush=True)
        if browser and _has_screen():
            threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()
        yield

    app = st.App(
        Path(__file__).with_name("app.py"),
        lifespan=greeting,
        middleware=[Middleware(Gate, address=address, hosts=hosts)],
    )
    app.run(config={**_OPTIONS, "server.address": address, "server.port": port, "server.headless": True})


def _has_screen() -> bool:
    """Without one, a text browser would take over the terminal."""
    return sys.platform in ("darwin", "win32") or any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY")))
