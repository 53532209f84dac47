"""What is read once and shared by all viewers: the open database, and its studies until something new is recorded."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import streamlit as st

from calibrate.display.data import StudyData, load_study
from calibrate.errors import CalibrateError
from calibrate.serve import CACHES_VARIABLE, STORAGE_VARIABLE
from calibrate.store import Storage, browse, database_file
from dashboard import insight


@st.cache_resource(max_entries=4)
def open_storage(url: str) -> Storage:
    """The database, opened so that it refuses every write."""
    return Storage(url, read_only=True)


def storage() -> Storage:
    """The database that the command named.

    Raises:
        CalibrateError: If there is none, or it cannot be opened.
    """
    url = os.environ.get(STORAGE_VARIABLE)
    if not url:
        raise CalibrateError("No database was named: start this page with `scope-calibrate dashboard --storage URL`.")
    return open_storage(url)


def clip_folders(opened: Storage) -> list[Path]:
    """Folders from which clips may be shown.

    A study's own record says where its cache is, and a record may come from anyone: it counts within these folders
    alone, that of an SQLite file, the default `runs/`, and those that the command named.
    """
    file = database_file(opened.url)
    beside = [file.parent] if file else []
    given = os.environ.get(CACHES_VARIABLE, "")
    return [*beside, Path("runs"), *(Path(folder) for folder in given.split(os.pathsep) if folder)]


def pulse(opened: Storage) -> tuple[Any, ...]:
    """See `browse.pulse`."""
    return browse.pulse(opened)


@st.cache_resource(max_entries=4, show_spinner="Reading the database ...")
def overviews(_storage: Storage, url: str, heartbeat: tuple[Any, ...]) -> list[browse.Overview]:
    """All studies, under one pulse."""
    return browse.overviews(_storage)


@st.cache_resource(max_entries=8, show_spinner="Reading the study ...")
def study(_storage: Storage, url: str, name: str, heartbeat: tuple[Any, ...]) -> StudyData:
    """One study, under one pulse."""
    return load_study(_storage, name)


@st.cache_resource(max_entries=2, show_spinner="Reading the search's parameters ...")
def parameters(_storage: Storage, url: str, name: str, heartbeat: tuple[Any, ...]) -> insight.Parameters:
    """What was searched, under one pulse."""
    return browse.parameters(_storage, name)
