"""Runs the page's server with the given Streamlit options; started by `scope-calibrate dashboard`."""

from __future__ import annotations

import contextlib
import logging
import sys
from pathlib import Path

from streamlit.web import cli

from calibrate.errors import CalibrateError
from dashboard import cache

# Loaded before the server listens: the first visitor must not wait for it.
from dashboard.views import front, insight, studies, trial  # noqa: F401


def _read_first_study() -> None:
    """Reads what the page shows first, so that its first visitor finds it there; failures are the page's to tell."""
    # Reading without a visitor is meant, and not worth Streamlit's warning.
    logging.getLogger("streamlit.runtime.scriptrunner_utils.script_run_context").setLevel(logging.ERROR)
    with contextlib.suppress(CalibrateError):
        storage = cache.storage()
        url, heartbeat = storage.url.render_as_string(hide_password=False), cache.pulse(storage)
        for overview in cache.overviews(storage, url, heartbeat)[:1]:
            cache.study(storage, url, overview.study.name, heartbeat)


if __name__ == "__main__":
    _read_first_study()
    sys.argv = ["streamlit", "run", str(Path(__file__).with_name("app.py")), *sys.argv[1:]]
    cli.main(prog_name="streamlit")
