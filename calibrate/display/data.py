"""A study as the views need it: read once through `calibrate.store`, then only looked at."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import pandas as pd

from calibrate.display.measures import QUALITY, SPEED, score_columns
from calibrate.errors import CalibrateError
from calibrate.quality.metrics import METRIC_VERSION, metric_version, psnr_meaning
from calibrate.results.promise_table import PromiseTable, recorded_table
from calibrate.results.result import (
    ESTIMATE,
    KINDS,
    RESULT,
    THRESHOLDS,
    Kind,
    Result,
    front_indices,
    of_metric,
    results_in,
)
from calibrate.results.sequence import SEQUENCES, sequences_in
from calibrate.spec.floors import Floors
from calibrate.store import PAIRED_STOCK, Generation, ProfileRecord, Storage, StudyRecord, browse
from calibrate.store.optuna_tables import study_attribute
from calibrate.study.study_file import Study, recorded_study

_FAILURE = "failure"
FIGURES = (*SPEED, *QUALITY)


@dataclass(frozen=True)
class Unseen:
    """What a policy came to on prompts that no choice has seen when it was chosen.

    Attributes:
        trial: Its number.
        kind: ``held-out`` or ``guarantee``: which prompts.
        prompts: How many.
        speedup: In block evaluations.
        psnr_db: The mean over the prompts.
        worst_db: The worst prompt's.
    """

    trial: int
    kind: str
    prompts: int
    speedup: float
    psnr_db: float
    worst_db: float


@dataclass(frozen=True)
class StudyData:
    """Everything that was measured for one study by one version of the figures.

    Attributes:
        record: The study.
        study: Its file.
        points: One row per policy with the columns `FIGURES`, those of `score_columns`, ``trial``, ``cases``,
            ``stopped`` (why not all search cases were measured, or None), ``estimated`` (whether its figures come from
            a replay alone) and ``kind`` (see `Result.kind`; a replay estimates thresholds alone).
        results: By trial number.
        failures: Reasons by trial number.
        states: How many trials are in each state.
        means: Of stock and exact mode, and of the runs that weights were fitted in, by kind.
        profiles: Exports, oldest first.
        replayed: Policies with both, ``estimate_psnr_db`` from a replay and ``psnr_db`` from real generations.
        unseen: By trial number, what policies came to on prompts that no choice has seen; the newest export comes last.
        promises: What can be promised, where a study tests that; of the present version's figures alone.
        metric_version: What the figures mean; see `calibrate.quality.metrics.METRIC_VERSION`.
        earlier: The same of the newest earlier version by which anything was measured, or None. The two are never drawn
            together.
    """

    record: StudyRecord
    study: Study
    points: pd.DataFrame
    results: Mapping[int, Result]
    failures: Mapping[int, str]
    states: Mapping[str, int]
    means: Mapping[str, browse.Means]
    profiles: Sequence[ProfileRecord]
    replayed: pd.DataFrame
    unseen: Mapping[int, Unseen] = field(default_factory=dict)
    promises: PromiseTable | None = None
    metric_version: int = METRIC_VERSION
    earlier: StudyData | None = None

    @property
    def meaning(self) -> str:
        """What PSNR means here."""
        return psnr_meaning(self.metric_version)

    @property
    def speed(self) -> str:
        """What ranks policies: the speed-up of time where pipelines are set up differently, else of evaluations."""
        return "speedup_denoise" if self.study.search.prepares else "speedup_evaluations"

    @property
    def kinds(self) -> list[Kind]:
        """Of which kinds policies were measured: one, or two that have to be told apart."""
        found = {result.kind for result in self.results.values()}
        return [kind for kind in KINDS if kind in found]

    @property
    def stock(self) -> browse.Means | None:
        """The means of stock runs; None before the baselines."""
        return self.means.get("stock") or self.means.get(PAIRED_STOCK)

    @property
    def exact_speedup(self) -> dict[str, float]:
        """What exact mode gains, by speed-up kind; empty before the baselines."""
        stock, exact = self.stock, self.means.get("exact")
        if stock is None or exact is None:
            return {}
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
            stock = self.stock
            others = [m.generations * m.evaluations / stock.evaluations for m in self.means.values()] if stock else []
            searched = [r.cases / r.speedup_evaluations + r.paired for r in self.results.values()]
            share = max(share, (sum(others) + sum(searched)) / prompts / budget.equivalents)
        return min(1.0, share)

    @property
    def told_unseen(self) -> Unseen | None:
        """The policy to quote: the one of the newest export, or else the fastest that passed for the guarantee."""
        return list(self.unseen.values())[-1] if self.unseen else None

    def profile_of(self, trial: int) -> ProfileRecord | None:
        """The newest export of a trial, with evidence from held-out prompts, whatever version that has."""
        return next((record for record in reversed(self.profiles) if record.trial_number == trial), None)


def load_study(storage: Storage, name: str) -> StudyData:
    """Reads a study.

    Raises:
        CalibrateError: If it is not there (any more), or cannot be read by this version.
    """
    with damage_told(name):
        return _load(storage, name)


@contextlib.contextmanager
def damage_told(name: str) -> Iterator[None]:
    """Says in one sentence that a study's records are not what they should be.

    Raises:
        CalibrateError: For what only such records lead to.
    """
    try:
        yield
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
        "means": browse.means_by_kind(storage, record.id),
        "profiles": browse.profiles(storage, record.id),
    }
    versions = {result.metric_version for result in results} - {METRIC_VERSION}
    before = max(versions, default=METRIC_VERSION)
    exported = {version: _held_out(shared["profiles"], version) for version in (before, METRIC_VERSION)}
    scores = score_columns(study.floors)
    earlier = (
        StudyData(**shared, **_figures(trials, results, before, scores), unseen=exported[before]) if versions else None
    )
    promises = _promises(storage, record, study, results)
    return StudyData(
        **shared,
        **_figures(trials, results, METRIC_VERSION, scores),
        unseen={**_guaranteed(promises), **exported[METRIC_VERSION]},
        promises=promises,
        earlier=earlier,
    )


def _promises(storage: Storage, record: StudyRecord, study: Study, results: Sequence[Result]) -> PromiseTable | None:
    """What can be promised by what is recorded."""
    if study.guarantee is None:
        return None
    sequences = sequences_in(study_attribute(storage, record.name, SEQUENCES))

    def complete(kind: str, trials: Sequence[int]) -> Sequence[Generation]:
        return browse.complete(storage, record.id, kind, METRIC_VERSION, trials)

    by_trial = {result.trial: result for result in results}
    return recorded_table(
        study.guarantee, study.floors, study.guarantee_cases, study.search_cases, sequences, complete,
        lambda trials: [by_trial[number] for number in trials],
    )  # fmt: skip


def _held_out(profiles: Sequence[ProfileRecord], version: int) -> dict[int, Unseen]:
    """What exported policies came to, the newest export last."""
    found: dict[int, Unseen] = {}
    for record in profiles:
        evidence, trial = record.profile["evidence"], int(record.trial_number)
        if metric_version(evidence) != version:
            continue
        found.pop(trial, None)
        found[trial] = of_evidence(evidence, trial)
    return found


def of_evidence(evidence: Mapping[str, Any], trial: int) -> Unseen:
    """What an exported policy came to on its held-out prompts."""
    figures = (float(evidence[name]) for name in ("speedup_evaluations", "psnr_db", "psnr_worst_prompt_db"))
    return Unseen(trial, "held-out", int(evidence["n"]), *figures)


def _guaranteed(promises: PromiseTable | None) -> dict[int, Unseen]:
    """What policies that passed for the guarantee came to, the fastest last."""
    found = {}
    for entry in promises.passed if promises else ():
        psnr = [figures["psnr_db"] for figures in entry.figures if figures is not None]
        if psnr and entry.speedup is not None:
            mean = sum(psnr) / len(psnr)
            found[entry.trial] = Unseen(entry.trial, "guarantee", len(psnr), entry.speedup, mean, min(psnr))
    return found


def _figures(
    trials: Sequence[browse.Trial], results: Sequence[Result], version: int, scores: Sequence[str]
) -> dict[str, Any]:
    """What there is of one version of the figures."""
    alike = of_metric(results, version)
    estimates = {
        t.number: t.attributes[ESTIMATE]
        for t in trials
        if t.attributes.keys() & {RESULT, ESTIMATE} == {ESTIMATE} and metric_version(t.attributes[ESTIMATE]) == version
    }
    return {
        "points": _points(alike, estimates, scores),
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


def _points(
    results: Sequence[Result], estimates: Mapping[int, Mapping[str, Any]], scores: Sequence[str]
) -> pd.DataFrame:
    columns = (*FIGURES, *scores)

    def quality(figures: Mapping[str, float]) -> tuple[float | None, ...]:
        return tuple(figures.get(key) for key in columns[len(SPEED) :])

    measured = [
        (r.speedup_evaluations, r.speedup_denoise, *quality(r.figures), r.trial, r.cases, r.stopped, False, r.kind)
        for r in results
    ]
    estimated = [
        (e["speedup_evaluations"], None, *quality(e.get("figures", {})), trial, 0, None, True, THRESHOLDS)
        for trial, e in estimates.items()
    ]
    frame = pd.DataFrame(measured + estimated, columns=[*columns, "trial", "cases", "stopped", "estimated", "kind"])
    return frame.astype(dict.fromkeys(columns, "float64") | {"trial": "int64", "cases": "int64", "estimated": "bool"})


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
