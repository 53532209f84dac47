"""Comparison clips on disk: which one belongs to a measurement, and single frames of it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from calibrate.measure.clips import ClipShelf
from calibrate.store import PREPARATION, Generation
from calibrate.study.study_file import Study


def served(folder: Path, allowed: Sequence[Path]) -> bool:
    """Whether clips may be shown from a folder that a database names: if it lies within one that the user named.

    Args:
        folder: The study's cache.
        allowed: Folders of the user's choice.
    """
    found = _resolved(folder)
    return found is not None and any(found.is_relative_to(os.path.realpath(root)) for root in allowed)


def clip_of(row: Generation, study: Study, allowed: Sequence[Path]) -> Path | None:
    """The clip of a measurement, or None where none was kept, it lies on another machine, or may not be shown.

    Args:
        row: A complete generation under a policy.
        study: Its study, as its database records it.
        allowed: See `served`. What a link leads to must lie in the study's cache as well.
    """
    if not served(study.cache_folder, allowed):
        return None
    shelf = ClipShelf(study.clip_folder, study.clip_megabytes)
    path = _resolved(shelf.path(row.policy or {}, row.prompt, row.seed, row.settings.get(PREPARATION)))
    if path is None or not path.is_relative_to(os.path.realpath(study.cache_folder)) or not path.is_file():
        return None
    return path


def frame_count(path: Path) -> int:
    """How many frames a clip has."""
    with _open(path) as container:
        return container.streams.video[0].frames


def frame(path: Path, number: int) -> NDArray[np.uint8]:
    """One frame [h, w, 3] of a clip, counted from 0 up to `frame_count` - 1."""
    with _open(path) as container:
        shown = next(islice(container.decode(video=0), number, None))
        return shown.to_ndarray(format="rgb24")


def _resolved(path: Path) -> Path | None:
    """Where a path leads in the end; None for what no file can be called, or links that lead in a circle."""
    try:
        return path.resolve()
    except (OSError, RuntimeError, ValueError):
        return None


def _open(path: Path) -> av.container.InputContainer:
    """A clip as what it should be: left to guess, the library would also follow playlists to other files."""
    return av.open(str(path), format="mp4")
