"""Runs the page's server with the given Streamlit options; started by `scope-calibrate dashboard`."""

from __future__ import annotations

import sys
from pathlib import Path

from streamlit.web import cli

# Loaded before the server listens: the first visitor must not wait for it.
from dashboard.views import front, insight, studies, trial  # noqa: F401

if __name__ == "__main__":
    sys.argv = ["streamlit", "run", str(Path(__file__).with_name("app.py")), *sys.argv[1:]]
    cli.main(prog_name="streamlit")
