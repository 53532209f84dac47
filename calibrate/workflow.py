"""The calibration from start to end, and what else the command line offers, without a word about how it is shown."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock, Timeout
from optuna.trial import TrialState
from pydantic import ValidationError

from calibrate.baseline import Baseline, Baselines
from calibrate.errors import CalibrateError
from calibrate.export import Exported, Exporter
from calibrate.paired import measure_pairs, verdict
from calibrate.progress import Narrator
from calibrate.results import fastest_feasible, front, load_results
from calibrate.search import Search, open_optuna_study
from calibrate.store import Storage, Store, masked_url
from calibrate.study_file import Case, Export, Generation, ModelSpec, StudyFile
from calibrate.target import Target
from scope_runtime import Profile, ProfileError, apply_scope

# What the export does beside generating: metrics, clip, plot.
_EXPORT_OVERHEAD_SECONDS = 15.0
# Timings vary; the export is given this much more time than it is expected to take.
_EXPORT_MARGIN = 1.15


class Session:
    """A study file with its open database; the pipeline is loaded when it is first needed."""

    def __init__(self, file: StudyFile, narrator: Narrator, *, create: bool) -> None:
        """Opens the database.

        Args:
            file: The study.
            narrator: Told of what happens.
            create: Whether a database that is not there is made.
        """
        self.file = file
        self.narrator = narrator
        self.storage = Storage(file.study.storage_url, create=create)

    @cached_property
    def target(self) -> Target:
        """The pipeline."""
        self.narrator.say(f"Loading the pipeline from {self.file.study.model.path}")
        return Target.load(self.file.model_path, self.file.study.model, self.file.study.generation)

    @property
    def lock_path(self) -> Path:
        """A file that a run holds locked; the system releases it however the run ends.

        It lies beside an SQLite database. For a server, which many machines reach, it keeps apart the runs of one
        folder only.
        """
        study, url = self.file.study, self.storage.url
        if url.get_backend_name() == "sqlite":
            return Path(f"{url.database}.{study.name}.lock")
        study.cache_folder.mkdir(parents=True, exist_ok=True)
        return study.cache_folder / "run.lock"

    def start(self) -> Store:
        """The study's records, made if there are none."""
        study = self.file.study
        return Store.open_study(
            self.storage,
            name=study.name,
            yaml_text=self.file.masked_text,
            fixed_parts=study.fixed_parts(),
            settings=self.target.settings.to_dict(),
            model=self.target.model,
        )

    def find(self) -> Store:
        """The study's records, which must be there."""
        return Store.find_study(self.storage, self.file.study.name)


@contextmanager
def open_session(study: Path, narrator: Narrator, *, create: bool = False) -> Iterator[Session]:
    """Reads a study file and opens its database, and closes it at the end."""
    session = Session(StudyFile(study), narrator, create=create)
    try:
        yield session
    finally:
        session.storage.close()


def run(session: Session) -> Exported:
    """Baselines, search, export: everything that is not there yet.

    Raises:
        CalibrateError: If anything that the user can mend is in the way, another run of the same study included.
    """
    lock = FileLock(session.lock_path, timeout=0)
    try:
        with lock:
            return _run_alone(session)
    except Timeout as error:
        raise CalibrateError(
            f"name: another process is running study {session.file.study.name!r}; wait for it or stop it."
        ) from error


def _run_alone(session: Session) -> Exported:
    started = time.monotonic()
    study = session.file.study
    store = session.start()
    optuna_study = open_optuna_study(store, create=True)
    baselines = _baselines(session, store)
    search = Search(study, store, optuna_study, session.target, baselines, session.narrator)
    minutes = study.budget.minutes
    reserve = _export_seconds(list(baselines.values()), len(study.held_out_cases))
    search.run(started + minutes * 60 - reserve if minutes else float("inf"))
    return _exporter(session, store, optuna_study).run(study.export)


def export(session: Session, settings: Export, trial: int | None = None) -> Exported:
    """Exports from what the search has measured so far, by the given rule or the given trial."""
    store = session.find()
    optuna_study = open_optuna_study(store, create=False)
    return _exporter(session, store, optuna_study).run(settings, trial)


def status(session: Session) -> dict[str, Any]:
    """How far a study has come."""
    store = session.find()
    study = session.file.study
    optuna_study = open_optuna_study(store, create=False)
    trials = optuna_study.get_trials(deepcopy=False)
    results = load_results(optuna_study)
    best = fastest_feasible(results, study.floors)
    last_activity = store.last_activity()
    return {
        "study": study.name,
        "storage": masked_url(study.storage_url),
        "created": store.study.created.isoformat(),
        "last_activity": last_activity.isoformat() if last_activity else None,
        "generations": store.counts(),
        "trials": {
            state.name.lower(): sum(trial.state == state for trial in trials)
            for state in (TrialState.COMPLETE, TrialState.FAIL, TrialState.RUNNING, TrialState.WAITING)
        },
        "candidates": len(results),
        "budget_trials": study.budget.trials,
        "feasible": sum(result.feasible(study.floors) for result in results),
        "best": best.to_dict() if best else None,
        "profiles": [
            {"path": record.path, "trial": record.trial_number, "rule": record.rule, "created": str(record.created)}
            for record in store.profiles()
        ],
    }


def pareto_front(session: Session) -> list[dict[str, Any]]:
    """The best trade-offs above the floors, fastest first, and after them what only lies below the floors."""
    results = load_results(open_optuna_study(session.find(), create=False))
    floors = session.file.study.floors
    feasible = front([result for result in results if result.feasible(floors)])
    beyond = [result for result in front(results) if result not in feasible]
    return [{**result.to_dict(), "feasible": result in feasible} for result in feasible + beyond]


def verify(profile_path: Path, study: Path | None, model: Path | None, narrator: Narrator) -> dict[str, Any]:
    """Measures a profile again on this machine: held-out prompts, stock, exact and SCOPE in one run.

    Args:
        profile_path: The profile.
        study: A study whose held-out cases and settings are used instead of those that the profile names.
        model: The pipeline's folder, if it is not where the profile or the study says.
        narrator: Told of every case.

    Raises:
        CalibrateError: If the pipeline cannot be found or the profile says nothing about its cases.
        ProfileError: If the profile is damaged or belongs to another model or other settings.
    """
    profile = Profile.load(profile_path)
    if study is not None:
        file = StudyFile(study)
        spec, generation = file.study.model, file.study.generation
        cases, folder = file.study.held_out_cases, file.model_path
    else:
        spec, generation, cases, folder = _recorded_setup(profile, profile_path, model)
    target = Target.load(model or folder, spec, generation)
    profile.check_model(target.pipe)
    if mismatches := profile.settings.mismatches(target.settings):
        raise ProfileError("settings", f"the cases would run with other settings than calibrated: {mismatches[0]}")
    narrator.stage("Held-out prompts: stock, exact, SCOPE", len(cases))
    pairs = []
    for pair, _ in measure_pairs(target, cases, lambda: apply_scope(target.pipe, profile, on_mismatch="raise")):
        narrator.advance(str(pair))
        pairs.append(pair)
    return verdict(pairs)


def _baselines(session: Session, store: Store) -> dict[Case, Baseline]:
    cases = session.file.study.search_cases
    maker = Baselines(session.target, store, session.file.study.cache_folder)
    session.narrator.stage("Baselines: stock and exact", len(cases))
    baselines = {}
    for case in cases:
        baselines[case], reused = maker.get(case)
        timings = baselines[case].timings
        session.narrator.advance(
            f"{case.label}: stock {timings.stock_seconds:.1f} s, exact {timings.exact_seconds:.1f} s"
            + (" (kept from before)" if reused else "")
        )
    return baselines


def _exporter(session: Session, store: Store, optuna_study: optuna.Study) -> Exporter:
    def load() -> Target:
        # The records know which model was measured; another one in its folder must not get its profile.
        session.start()
        return session.target

    return Exporter(session.file, store, optuna_study, load, session.narrator)


def _export_seconds(baselines: list[Baseline], cases: int) -> float:
    """What the held-out measurement will take: stock, exact, at most another exact, and two decodes per case."""
    per_case = sum(
        b.timings.stock_seconds + 2 * b.timings.exact_seconds + 2 * b.timings.decode_seconds for b in baselines
    ) / len(baselines)
    return _EXPORT_MARGIN * cases * per_case + _EXPORT_OVERHEAD_SECONDS


def _recorded_setup(profile: Profile, path: Path, model: Path | None) -> tuple[ModelSpec, Generation, list[Case], Path]:
    """What the profile itself says about how it was measured."""
    recorded = profile.provenance.get("verify")
    if not isinstance(recorded, dict):
        raise ProfileError("provenance.verify", f"is missing in {path}; name the study as a second argument")
    relative = recorded.get("model")
    if model is None and relative is None:
        raise CalibrateError("--model: the profile does not say where its pipeline is; give the folder with --model.")
    folder = model or path.parent / str(relative)
    try:
        spec = ModelSpec.model_validate({**recorded["model_spec"], "path": str(folder)})
        generation = Generation.model_validate(recorded["generation"])
        cases = [Case.model_validate(case) for case in recorded["cases"]]
    except (KeyError, TypeError, ValidationError) as error:
        raise ProfileError("provenance.verify", f"is damaged in {path}; export the profile again") from error
    if not cases:
        raise ProfileError("provenance.verify.cases", f"is empty in {path}; export the profile again")
    return spec, generation, cases, folder
