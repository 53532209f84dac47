"""Runs the page's server; started by `scope-calibrate dashboard`, which has checked the options."""

from __future__ import annotations

import argparse
import contextlib
import logging

from calibrate.display.measures import QUALITY, SPEED
from calibrate.display.theme import palette
from dashboard import cache, server
from dashboard.page import Page

# Loaded before the server listens: the first visitor must not wait for it.
from dashboard.views import front, insight, studies, trial  # noqa: F401


def _draw_first_chart() -> None:
    """Reads and draws what the page shows first, so that its first visitor does not wait for it.

    Failures, of whatever a database may hold, are the page's to tell.
    """
    # Reading without a visitor is meant, and not worth Streamlit's warnings.
    for name in ("scriptrunner_utils.script_run_context", "state.session_state_proxy"):
        logging.getLogger(f"streamlit.runtime.{name}").setLevel(logging.ERROR)
    with contextlib.suppress(Exception):
        storage = cache.storage()
        url, heartbeat = storage.url.render_as_string(hide_password=False), cache.pulse(storage)
        for overview in cache.overviews(storage, url, heartbeat)[:1]:
            data = cache.study(storage, url, overview.study.name, heartbeat)
            speed, quality = next(iter(SPEED.values())), next(iter(QUALITY.values()))
            # For the sake of drawing once: much of the plotting library is loaded when it is first used.
            page = Page(storage, heartbeat, data, speed, quality, data.study.floors, palette(dark=False))
            front.trade_off(page).to_json()


if __name__ == "__main__":
    options = argparse.ArgumentParser(prog="dashboard")
    options.add_argument("--address", required=True)
    options.add_argument("--port", type=int, required=True)
    options.add_argument("--allow-host", action="append", default=[])
    options.add_argument("--headless", action="store_true")
    given = options.parse_args()
    # Ctrl-C is how it ends.
    with contextlib.suppress(KeyboardInterrupt):
        _draw_first_chart()
        server.run(given.address, given.port, given.allow_host, browser=not given.headless)
