"""A study as the views need it: read once through `calibrate.store`, then only looked at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pandas as pd

from calibrate.errors import CalibrateError
from calibrate.quality import METRIC_VERSION, metric_version, psnr_meaning
from calibrate.results import ESTIMATE, RESULT, Result, front_indices, of_metric, results_in
from calibrate.store import ProfileRecord, Storage, StudyRecord, browse
from calibrate.study_file import Floors, Study, recorded_study
from dashboard.measures import QUALITY, SPEED

_FAILURE = "failure"
FIGURES = (*SPEED, *QUALITY)


@dataclass(frozen=True)
class StudyData:
    """Everything that was measured for one study by one version of the figures.

    Attributes:
        record: The study.
        study: Its file.
        points: One row per policy with the columns `FIGURES`, ``trial``, ``cases``, ``stopped`` (why not all search
            cases were measured, or None) and ``estimated`` (whether its figures come from a replay alone).
        results: By trial number.
        failures: Reasons by trial number.
        states: How many trials are in each state.
        full_compute: Stock and exact mode on the search cases.
        profiles: Exports, oldest first.
        replayed: Policies with both, ``estimate_psnr_db`` from a replay and ``psnr_db`` from real generations.
        metric_version: What the figures mean; see `calibrate.quality.METRIC_VERSION`.
        earlier: The same of the newest earlier version by which anything was measured, or None. The two are never drawn
            together.
    """

    record: StudyRecord
    study: Study
    points: pd.DataFrame
    results: Mapping[int, Result]
    failures: Mapping[int, str]
    states: Mapping[str, int]
    full_compute: Mapping[str, browse.FullCompute]
    profiles: Sequence[ProfileRecord]
    replayed: pd.DataFrame
    metric_version: int = METRIC_VERSION
    earlier: StudyData | None = None

    @property
    def meaning(self) -> str:
        """What PSNR means here."""
        return psnr_meaning(self.metric_version)

    @property
    def exact_speedup(self) -> dict[str, float]:
        """What exact mode gains, by speed-up kind; empty before the baselines."""
        if not {"stock", "exact"} <= self.full_compute.keys():
            return {}
        stock, exact = self.full_compute["stock"], self.full_compute["exact"]
        return {
            "speedup_evaluations": stock.evaluations / exact.evaluations,
            "speedup_denoise": stock.seconds_denoise / exact.seconds_denoise,
        }

    @property
    def budget_spent(self) -> float:
        """How much of the search's budget is spent, 0 to 1: of its trials or of its full generations, the larger."""
        budget, prompts = self.study.budget, len(self.study.search_cases)
        share = len(self.results) / budget.trials
        if budget.equivalents is not None:
            stock = self.full_compute.get("stock")
            full = [c.cases * c.evaluations / stock.evaluations for c in self.full_compute.values()] if stock else []
            searched = [result.cases / result.speedup_evaluations for result in self.results.values()]
            share = max(share, (sum(full) + sum(searched)) / prompts / budget.equivalents)
        return min(1.0, share)

    def profile_of(self, trial: int) -> ProfileRecord | None:
        """The newest export of a trial, with evidence from held-out prompts, whatever version that has."""
        return next((record for record in reversed(self.profiles) if record.trial_number == trial), None)


def load_study(storage: Storage, name: str) -> StudyData:
    """Reads a study.

    Raises:
        CalibrateError: If it is not there (any more), or cannot be read by this version.
    """
    try:
        return _load(storage, name)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CalibrateError(
            f"The records of study {name!r} are damaged, or of another version of this program "
            f"({type(error).__name__}: {error})."
        ) from error


def _load(storage: Storage, name: str) -> StudyData:
    record = browse.study_record(storage, name)
    study = recorded_study(record.yaml_text)
    trials = browse.trials(storage, name, (RESULT, _FAILURE, ESTIMATE))
    results = results_in(trial.attributes for trial in trials if trial.state == "COMPLETE")
    states: dict[str, int] = {}
    for trial in trials:
        states[trial.state.lower()] = states.get(trial.state.lower(), 0) + 1
    shared: dict[str, Any] = {
        "record": record,
        "study": study,
        "failures": {t.number: str(t.attributes[_FAILURE]) for t in trials if _FAILURE in t.attributes},
        "states": states,
        "full_compute": browse.full_compute(storage, record.id),
        "profiles": browse.profiles(storage, record.id),
    }
    versions = {result.metric_version for result in results} - {METRIC_VERSION}
    earlier = StudyData(**shared, **_figures(trials, results, max(versions))) if versions else None
    return StudyData(**shared, **_figures(trials, results, METRIC_VERSION), earlier=earlier)


def _figures(trials: Sequence[browse.Trial], results: Sequence[Result], version: int) -> dict[str, Any]:
    """What there is of one version of the figures."""
    alike = of_metric(results, version)
    estimates = {
        t.number: t.attributes[ESTIMATE]
        for t in trials
        if t.attributes.keys() & {RESULT, ESTIMATE} == {ESTIMATE} and metric_version(t.attributes[ESTIMATE]) == version
    }
    return {
        "points": _points(alike, estimates),
        "results": {result.trial: result for result in alike},
        "replayed": _replayed(trials, version),
        "metric_version": version,
    }


def feasible(points: pd.DataFrame, floors: Floors) -> pd.Series:
    """Which policies were measured on all search cases and hold every floor with its safety margin."""
    shortfalls = floors.shortfalls(cast(dict[str, float], points), margin=True)
    holds = points["stopped"].isna()
    for shortfall in shortfalls.values():
        holds = holds & (cast(Any, shortfall) <= 0)
    return holds & ~points["estimated"]


def front(points: pd.DataFrame, speed: str, quality: str) -> pd.DataFrame:
    """The points that no other one beats in both columns, fastest first."""
    return points.iloc[front_indices(points[speed].to_numpy(np.float64), points[quality].to_numpy(np.float64))]


def best_point(points: pd.DataFrame, floors: Floors, speed: str) -> int | None:
    """The trial number of the fastest policy above the floors; of equals the one whose worst prompt is better."""
    holding = points[feasible(points, floors)]
    if holding.empty:
        return None
    ranked = holding.sort_values([speed, "psnr_worst_prompt_db"], ascending=False)
    return int(ranked["trial"].iloc[0])


def _points(results: Sequence[Result], estimates: Mapping[int, Mapping[str, Any]]) -> pd.DataFrame:
    def quality(figures: Mapping[str, float]) -> tuple[float | None, ...]:
        return tuple(figures.get(key) for key in QUALITY)

    measured = [
        (r.speedup_evaluations, r.speedup_denoise, *quality(r.figures), r.trial, r.cases, r.stopped, False)
        for r in results
    ]
    estimated = [
        (e["speedup_evaluations"], None, *quality(e.get("figures", {})), trial, 0, None, True)
        for trial, e in estimates.items()
    ]
    frame = pd.DataFrame(measured + estimated, columns=[*FIGURES, "trial", "cases", "stopped", "estimated"])
    return frame.astype(dict.fromkeys(FIGURES, "float64") | {"trial": "int64", "cases": "int64", "estimated": "bool"})


def _replayed(trials: Sequence[browse.Trial], version: int) -> pd.DataFrame:
    both = [
        t.attributes
        for t in trials
        if {RESULT, ESTIMATE} <= t.attributes.keys()
        and {metric_version(t.attributes[key]) for key in (RESULT, ESTIMATE)} == {version}
    ]
    # An estimate is for all search cases.
    both = [attributes for attributes in both if not attributes[RESULT]["stopped"]]
    rows = [(a[ESTIMATE]["figures"]["psnr_db"], a[RESULT]["figures"]["psnr_db"]) for a in both]
    return pd.DataFrame(rows, columns=["estimate_psnr_db", "psnr_db"])
