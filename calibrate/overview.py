"""What is recorded of studies, and looking after whole ones: nothing here runs a model, or loads what it takes to."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from calibrate.errors import CalibrateError
from calibrate.files import write_atomically
from calibrate.progress import Narrator
from calibrate.quality.metrics import METRIC_VERSION, psnr_meaning
from calibrate.results.promise_table import PromiseTable
from calibrate.results.promises import NO_GUARANTEE
from calibrate.results.result import CHANGE_MAPS, PREPARATIONS, Result, fastest, front, of_metric, survey, with_policies
from calibrate.session import Session, open_session
from calibrate.store import Store, masked_url
from calibrate.store.lock import StudyLock
from calibrate.store.optuna_tables import study_attribute, trial_states
from calibrate.study.outputs import companions, require_report_path
from calibrate.study.promised import recorded_promises
from calibrate.study.study_file import Study


def status(session: Session) -> dict[str, Any]:
    """How far a study has come."""
    store = session.find()
    study = session.file.study
    everything = survey(store)
    results = of_metric(everything)
    states = trial_states(store.storage, study.name)
    feasible = [result for result in results if result.feasible(study.floors)]
    best = fastest(feasible)
    last_activity = store.last_activity()
    profiles = store.profiles()
    return {
        "study": study.name,
        "storage": masked_url(study.storage_url),
        "created": store.study.created.isoformat(),
        "last_activity": last_activity.isoformat() if last_activity else None,
        "generations": store.counts(),
        "trials": {state.lower(): states.get(state, 0) for state in ("COMPLETE", "FAIL", "RUNNING", "WAITING")},
        "driver": _driver(store),
        "failures": store.failures(),
        "change_maps": change_maps(store),
        "preparations": study_attribute(store.storage, study.name, PREPARATIONS) or [],
        "candidates": len(results),
        "budget_trials": study.budget.trials,
        "equivalents": store.equivalents(metric_version=METRIC_VERSION) / len(study.search_cases),
        "budget_equivalents": study.budget.equivalents,
        "guarantee_equivalents": store.guarantee_equivalents(),
        "guarantee": _guarantee(session.file.study, store),
        "feasible": len(feasible),
        "margin_db": study.floors.safety_margin_db,
        "metric_version": METRIC_VERSION,
        "set_apart": _set_apart(everything),
        "best": _told(with_policies(store, [best])[0]) if best else None,
        "profiles": [
            {"path": record.path, "trial": record.trial_number, "rule": record.rule, "created": str(record.created)}
            for record in profiles
        ],
        "exported": profiles[-1].profile["evidence"] if profiles else None,
    }


def promises(session: Session) -> PromiseTable:
    """What can be promised by what was measured so far.

    Raises:
        CalibrateError: If the study asks for no guarantee, or none of its policies has been tested yet.
    """
    study = session.file.study
    if study.guarantee is None:
        raise CalibrateError(f"guarantee: {NO_GUARANTEE}")
    table = recorded_promises(session.find(), study)
    if table is None:
        raise CalibrateError(
            "guarantee: no policy has been tested yet; `scope-calibrate run` does so after its search."
        )
    return table


def _guarantee(study: Study, store: Store) -> dict[str, Any] | None:
    """How far the tests of a study's wish have come; None if it has none, or none was begun."""
    table = recorded_promises(store, study)
    if table is None:
        return None
    known = table.to_dict()
    return {name: known[name] for name in ("statement", "share", "confidence", "cases", "best", "policies")}


def report(source: Path, output: Path | None, *, markdown: bool) -> Path:
    """Writes a report about a study or a profile.

    Args:
        source: A study's file, or a profile.
        output: Where it goes; None beside the profile.
        markdown: Whether to write a model card in place of a page.

    Returns:
        Where it is.

    Raises:
        CalibrateError: If there is nothing to report, or something else than a report is there.
        ProfileError: If the profile is damaged.
    """
    # These load what draws, which nothing else here needs.
    from calibrate.display.data import damage_told
    from calibrate.report.card import card
    from calibrate.report.content import Content, of_profile, of_study
    from calibrate.report.page import page

    def free(profile: Path) -> Path:
        own = profile.with_name("README.md") if markdown else companions(profile).report
        require_report_path(output or own, "--output")
        return output or own

    def write(content: Content, path: Path) -> Path:
        write_atomically(path, card(content, path.parent) if markdown else page(content))
        return path

    if source.suffix not in (".yaml", ".yml"):
        return write(of_profile(source), free(source))
    with open_session(source, Narrator()) as session, damage_told(session.file.study.name):
        study = session.file.study
        path = free(study.profile_path)
        session.find()
        return write(of_study(session.storage, study, study.profile_path), path)


def delete(session: Session) -> None:
    """Removes a study's records, Optuna's included.

    Raises:
        CalibrateError: If a process runs it.
    """
    import optuna

    from calibrate.search.quiet import quiet_optuna
    from calibrate.store.optuna_storage import open_optuna

    store = session.find()
    with StudyLock(store):
        with contextlib.suppress(KeyError), quiet_optuna():
            optuna.delete_study(study_name=store.study.name, storage=open_optuna(session.storage))
        # Ours goes last: as long as it is there, the same command can be given again.
        store.delete()


def rename(session: Session, name: str) -> list[str]:
    """Renames a study's records, Optuna's included, in one transaction.

    Returns:
        Lines for the study file, without which the study would not be found again.

    Raises:
        CalibrateError: If the name is taken or not allowed, or a process runs it.
    """
    study = session.file.study
    try:
        Study.model_validate({**study.model_dump(), "name": name})
    except ValidationError as error:
        raise CalibrateError(
            f"name: {name!r} is not allowed; use letters, digits, dots, dashes and underscores."
        ) from error
    store = session.find()
    with StudyLock(store):
        store.rename(name)
    return [f"name: {name}", f"storage: {masked_url(study.storage_url)}", f"cache: {study.cache_folder}"]


def compare(studies: Sequence[Path]) -> list[dict[str, Any]]:
    """What sets studies apart: settings, progress, best candidate and newest exported evidence, in the order given.

    Raises:
        CalibrateError: If a study is missing or was not started.
    """
    compared, settings = [], []
    for path in studies:
        with open_session(path, Narrator()) as session:
            state = status(session)
            settings.append(
                _flat(session.file.study.model_dump(mode="json", include={"model", "generation", "floors"}))
            )
            kept = ("study", "storage", "candidates", "feasible", "best", "generations", "set_apart", "exported")
            compared.append({key: state[key] for key in kept})
    differing = [name for name in settings[0] if len({str(setting.get(name)) for setting in settings}) > 1]
    for entry, setting in zip(compared, settings, strict=True):
        entry["differing_settings"] = {name: setting.get(name) for name in differing}
    return compared


def _flat(data: dict[str, Any]) -> dict[str, Any]:
    return {f"{part}.{name}": value for part, values in data.items() for name, value in values.items()}


def _driver(store: Store) -> dict[str, Any] | None:
    """The process that runs the study: where it is, what its devices do, and how long its stage will take still."""
    record = store.driver()
    if record is None or not StudyLock(store).is_taken():
        return None
    return {"host": record.host, "process": record.process, "seen": record.seen.isoformat(), **record.state}


@dataclass(frozen=True)
class Front:
    """The best trade-offs of one metric version.

    Attributes:
        entries: Those above the floors, fastest first, and after them what only lies below the floors. Each is a
            `Result` as JSON, and says with it of which `kind` it is, whether it is `feasible`, which floors it has
            `missed` and what `psnr` means.
        set_apart: How many candidates have figures of another version than the present one, and what these mean.
    """

    entries: list[dict[str, Any]]
    set_apart: dict[str, Any]


def pareto_front(session: Session, *, earlier: bool = False) -> Front:
    """The front of what the present version measured, or else of what the newest earlier one did.

    Args:
        session: The study.
        earlier: Whether to list what the newest earlier version measured in any case.
    """
    store = session.find()
    everything = survey(store)
    results = ([] if earlier else of_metric(everything)) or _newest_earlier(everything)
    floors = session.file.study.floors
    feasible = front([result for result in results if result.feasible(floors)])
    beyond = [result for result in front(results) if result not in feasible]
    full = with_policies(store, feasible + beyond)
    entries = [
        {
            **_told(result),
            "feasible": number < len(feasible),
            "missed": floors.told_missed(result.figures, margin=True),
            "psnr": psnr_meaning(result.metric_version),
        }
        for number, result in enumerate(full)
    ]
    return Front(entries, _set_apart(everything))


def _told(result: Result) -> dict[str, Any]:
    """A result as JSON, with its kind."""
    return {**result.to_dict(), "kind": result.kind}


def _set_apart(results: Sequence[Result]) -> dict[str, Any]:
    earlier = _newest_earlier(results)
    return {
        "candidates": len(results) - len(of_metric(results)),
        "psnr_db": psnr_meaning(earlier[0].metric_version) if earlier else None,
    }


def _newest_earlier(results: Sequence[Result]) -> list[Result]:
    """The results of the newest metric version before the present one."""
    versions = {result.metric_version for result in results} - {METRIC_VERSION}
    return of_metric(results, max(versions)) if versions else []


def change_maps(store: Store) -> dict[str, Any]:
    """How well each indicator's change map fits, as the search found it."""
    return study_attribute(store.storage, store.study.name, CHANGE_MAPS) or {}
