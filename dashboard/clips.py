"""Comparison clips on disk: which one belongs to a measurement, and single frames of it."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from calibrate.clips import ClipShelf
from calibrate.store import Generation, ProfileRecord
from calibrate.study_file import Study


def clip_of(row: Generation, study: Study, profile: ProfileRecord | None) -> Path | None:
    """The clip of a measurement, or None where none was kept or it lies on another machine.

    Args:
        row: A complete generation under a policy.
        study: Its study.
        profile: The export of the same trial, which keeps the clip of its worst held-out prompt.
    """
    if row.kind == "candidate":
        shelf = ClipShelf(study.clip_folder, study.clip_megabytes)
        path = shelf.path(row.policy or {}, row.prompt, row.seed)
    elif profile is not None and _is_worst(row, profile.profile["evidence"]):
        path = Path(profile.path).with_suffix(".mp4")
    else:
        return None
    return path if path.is_file() else None


def frame_count(path: Path) -> int:
    """How many frames a clip has."""
    with av.open(str(path)) as container:
        return container.streams.video[0].frames


def frame(path: Path, number: int) -> NDArray[np.uint8]:
    """One frame [h, w, 3] of a clip, counted from 0 up to `frame_count` - 1."""
    with av.open(str(path)) as container:
        shown = next(islice(container.decode(video=0), number, None))
        return shown.to_ndarray(format="rgb24")


def _is_worst(row: Generation, evidence: Mapping[str, Any]) -> bool:
    worst = evidence.get("worst_prompt", {})
    return (worst.get("prompt"), worst.get("seed")) == (row.prompt, row.seed)
