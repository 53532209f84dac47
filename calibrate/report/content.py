"""What a report is about, gathered from a study's records or from a profile alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from calibrate.display.data import StudyData, best_point, load_study
from calibrate.errors import CalibrateError
from calibrate.quality.metrics import metric_version
from calibrate.report.clips import Clip, beside_profile, on_shelf
from calibrate.store import Generation, ProfileRecord, Storage, browse
from calibrate.study.study_file import Study
from scope_runtime import Profile, ProfileError

Measurement = tuple[Generation, Mapping[str, Any]]


@dataclass(frozen=True)
class Content:
    """What is told.

    Attributes:
        name: The study's, or that of the profile's file.
        path: Where the profile is, or would be.
        profile: What was exported, if anything was.
        data: The study's records; None where there is a profile alone.
        study: By its own file; None where there is a profile alone.
        trial: The policy that is shown, by its trial number.
        measured: Its generations, each with its detail.
        clips: What there is to watch of it.
    """

    name: str
    path: Path
    profile: Profile | None = None
    data: StudyData | None = None
    study: Study | None = None
    trial: int | None = None
    measured: Sequence[Measurement] = ()
    clips: Sequence[Clip] = ()

    @property
    def evidence(self) -> Mapping[str, Any]:
        """The profile's; empty without one."""
        return {} if self.profile is None else self.profile.evidence


def of_profile(path: Path) -> Content:
    """What a profile says of itself.

    Raises:
        ProfileError: If there is none, or it is damaged.
    """
    profile = Profile.load(path)
    return Content(path.stem, path, profile, clips=beside_profile(profile, path))


def of_study(storage: Storage, study: Study, path: Path, profile: Profile | None = None) -> Content:
    """What is recorded of a study, and of the policy that it exported last.

    Args:
        storage: Its database.
        study: By its own file.
        path: Where the profile is.
        profile: One that is about to be written there; None for the newest that is recorded.

    Raises:
        CalibrateError: If nothing was measured yet, or the records are damaged.
    """
    data = load_study(storage, study.name)
    given = profile is not None
    if profile is not None:
        data = _with_profile(data, profile, path)
    elif data.profiles:
        profile = Profile.from_dict(data.profiles[-1].profile)
    data = _comparable(data, profile)
    if not data.results:
        raise CalibrateError(f"Study {study.name!r} has measured no candidate yet; run it first.")
    trial = best_point(data.points, study.floors, data.speed)
    if profile is not None:
        trial = int(data.profiles[-1].trial_number)
    measured: Sequence[Measurement] = ()
    if trial is not None and trial in data.results:
        shown = data.results[trial]
        measured = browse.measurements(storage, data.record.id, shown.policy, data.metric_version, shown.preparation)
    clips = on_shelf(study, [row for row, _ in measured])
    if profile is not None and (given or _is_at(path, profile)):
        beside = beside_profile(profile, path)
        known = {clip.case for clip in beside}
        clips = [*beside, *(clip for clip in clips if clip.case not in known)]
    return Content(study.name, path, profile, data, study, trial, measured, clips)


def _is_at(path: Path, profile: Profile) -> bool:
    """Whether a file holds just this profile, so that what lies beside it belongs to it."""
    try:
        return Profile.load(path).to_dict() == profile.to_dict()
    except ProfileError:
        return False


def _with_profile(data: StudyData, profile: Profile, path: Path) -> StudyData:
    """The records with an export that has not been recorded yet."""
    record = ProfileRecord(
        trial_number=profile.provenance["trial"], rule=profile.provenance["rule"], path=str(path),
        profile=profile.to_dict(),
    )  # fmt: skip
    profiles = [*data.profiles, record]
    earlier = None if data.earlier is None else replace(data.earlier, profiles=profiles)
    return replace(data, profiles=profiles, earlier=earlier)


def _comparable(data: StudyData, profile: Profile | None) -> StudyData:
    """The figures of the profile's version, or else the newest that there are."""
    if data.earlier is None:
        return data
    wanted = data.metric_version if profile is None else metric_version(profile.evidence)
    return data.earlier if wanted == data.earlier.metric_version or not data.results else data
