"""Keeping the page up to date while a study runs: it looks at the database's pulse and redraws when that changes."""

from __future__ import annotations

from typing import Any

import streamlit as st

from calibrate.errors import CalibrateError
from dashboard import cache

_EVERY_SECONDS = 5


@st.fragment(run_every=_EVERY_SECONDS)
def watch(seen: tuple[Any, ...] | None) -> None:
    """Redraws the page once the database differs from what it shows.

    Args:
        seen: The pulse of what is shown, or None where the database could not be read.
    """
    try:
        now = cache.pulse(cache.storage())
    except CalibrateError:
        now = None
    if now != seen:
        st.rerun(scope="app")
