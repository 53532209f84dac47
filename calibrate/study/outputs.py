"""Where results go, looked at before anything is computed: hours must not end at a path that cannot be written."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from pathlib import Path
from typing import NamedTuple

from calibrate.errors import CalibrateError
from calibrate.files import file_failure, read_text
from calibrate.store import database_file
from calibrate.study.study_file import Study, StudyFile
from scope_runtime.files import temporary_name

# As long as any name that is written into a study's cache.
_CACHED = "x" * 64


REPORT_MARK = "<!-- written by scope-calibrate report, which replaces it -->"
"""By this near its beginning a report is known, so that another may take its place."""
_MARK_WITHIN = 1024


class Companions(NamedTuple):
    """The files that an export writes beside a profile.

    Attributes:
        clip: Stock, SCOPE and their difference for the worst held-out prompt.
        plot: The front.
        report: All of it on one page.
    """

    clip: Path
    plot: Path
    report: Path


def companions(profile: Path) -> Companions:
    """What an export writes beside a profile."""
    plot = profile.with_name(f"{profile.stem}-front.png")
    return Companions(profile.with_suffix(".mp4"), plot, profile.with_suffix(".html"))


def left_beside(profile: Path) -> list[Path]:
    """A profile and what there is of the files that a run leaves beside it: clip, plot and report."""
    return [path for path in (profile, *companions(profile)) if path.is_file()]


def require_profile_path(file: StudyFile, profile: Path) -> None:
    """Makes sure that an export can write a profile and what belongs to it, and destroys nothing by it.

    Raises:
        CalibrateError: Naming `export.path`, if it cannot, or something else than a profile or a report is there.
    """
    field = "export.path"
    require_file(file, profile, field)
    if profile.suffix in {path.suffix for path in companions(profile)}:
        raise CalibrateError(
            f"{field}: {profile} is a name for the clip, the plot or the report, which an export writes beside the "
            "profile; end it in .json."
        )
    for path in companions(profile):
        require_file(file, path, field)
    _require_report(companions(profile).report, field)
    if os.path.lexists(profile) and not _is_profile(profile):
        raise CalibrateError(
            f"{field}: {profile} is there already and is no profile; choose another path, or move it away."
        )


def require_file(file: StudyFile, path: Path, field: str) -> None:
    """Makes sure that a file of results can be written without harm to the study.

    Raises:
        CalibrateError: Naming `field`, if it is a folder, the study file or its database, or cannot be written.
    """
    own = {file.path: "the study file itself", database_file(file.study.storage_url): "the study's database"}
    for other, what in own.items():
        if other is not None and os.path.realpath(path) == os.path.realpath(other):
            raise CalibrateError(f"{field}: {path} is {what}; choose another path.")
    _require_no_folder(path, field)
    _require_writable(path, f"{field}: {path}")


def require_report_path(path: Path, field: str) -> None:
    """Makes sure that a report can be written, and takes the place of no other file.

    Raises:
        CalibrateError: Naming `field`, if it is a folder, something else than a report, or cannot be written.
    """
    _require_no_folder(path, field)
    _require_report(path, field)
    _require_writable(path, f"{field}: {path}")


def _require_no_folder(path: Path, field: str) -> None:
    if os.path.isdir(path):  # noqa: PTH112 - pathlib's raises where a name is too long
        raise CalibrateError(f"{field}: {path} is a folder; name a file, or choose another path.")


def _require_report(path: Path, field: str) -> None:
    if os.path.lexists(path) and not _is_report(path):
        raise CalibrateError(
            f"{field}: {path} is there already and is no report; choose another path, or move it away."
        )


def require_cache(study: Study) -> None:
    """Makes sure that baselines and clips can be kept.

    Raises:
        CalibrateError: Naming `cache`, if they cannot.
    """
    _require_writable(study.cache_folder / _CACHED, f"cache: {study.cache_folder}")


def existing(folder: Path) -> Path:
    """The folder, or the closest one above it that is there."""
    absolute = folder.absolute()
    return next(path for path in (absolute, *absolute.parents) if os.path.lexists(path))


def _require_writable(path: Path, named: str) -> None:
    folder = existing(path.parent)
    try:
        # A file without a name: nothing is left of it, whatever happens.
        with tempfile.TemporaryFile(dir=folder):
            pass
        # Names may be too long one by one, the temporary one of the file most of all, or taken together.
        for part in (path, *(folder / name for name in (*path.parts, temporary_name(path)))):
            with contextlib.suppress(FileNotFoundError):
                part.lstat()
    except OSError as error:
        raise CalibrateError(f"{named} cannot be written: {file_failure(error)}.") from error


def _is_profile(path: Path) -> bool:
    # Loads torch, which a list of generations can be written without.
    from scope_runtime.profile import FORMAT, MOST_BYTES

    try:
        found = json.loads(read_text(path, MOST_BYTES))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(found, dict) and found.get("format") == FORMAT


def _is_report(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return path.is_file() and REPORT_MARK.encode() in file.read(_MARK_WITHIN)
    except OSError:
        return False
