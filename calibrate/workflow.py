"""The calibration from start to end, without a word about how it is shown."""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from calibrate.doctor import refuse_unsound
from calibrate.errors import CalibrateError
from calibrate.export.export import Exported, Exporter
from calibrate.export.guarantee import GuaranteeTests
from calibrate.export.held_out import measure_held_out
from calibrate.export.recheck import against_promise, recheck
from calibrate.families import FAMILIES
from calibrate.measure.baseline import Baseline, Reference
from calibrate.measure.describe import Describe, Description
from calibrate.measure.gap_fit import Truth
from calibrate.measure.paired import verdict
from calibrate.overview import change_maps, pareto_front
from calibrate.pool.opening import open_pool
from calibrate.pool.pool import Pool, Where, call
from calibrate.progress import Narrator
from calibrate.quality.metrics import METRIC_VERSION
from calibrate.quality.scores import Scores
from calibrate.results.promises import promise_in, require_promise
from calibrate.search.baselines import Baselines
from calibrate.search.driver import Driver
from calibrate.search.optuna_study import enqueue, open_optuna_study
from calibrate.search.preparations import share, usable
from calibrate.search.presence import keep_presence
from calibrate.search.warm_start import first_candidates
from calibrate.session import Session, open_session
from calibrate.spec.generation import Case, Generation, ModelSpec
from calibrate.spec.running import Export, Timing
from calibrate.store import CONTENT, Store, recorded
from calibrate.store.lock import StudyLock
from calibrate.study.study_file import StudyFile
from calibrate.tracking import tracked
from scope_runtime import Policy, Preparation, Profile, ProfileError

# What the export does beside generating: metrics, clip, plot.
_EXPORT_OVERHEAD_SECONDS = 15.0
# Timings vary; the export is given this much more time than it is expected to take.
_EXPORT_MARGIN = 1.15


def run(session: Session, warm_start: str | None = None, where: Where = Where()) -> Exported:
    """Baselines, search, export: everything that is not there yet.

    Args:
        session: The study.
        warm_start: A profile (a path or an address on the Hub) or a study file, of other settings perhaps: the
            profile's policy and its neighbours are tried first, or the policies of the study's front.
        where: On which devices.

    Raises:
        CalibrateError: If anything that the user can mend is in the way, another process that runs this study included.
    """
    study = session.file.study
    refuse_unsound(session.file, elsewhere=where.ray is not None)
    first = _policies_of(warm_start) if warm_start else ()
    with ExitStack() as held:
        lock = None
        if recorded(session.storage, study.name):
            # Whoever is second hears of it before a model is loaded.
            lock = held.enter_context(StudyLock(session.find()))
        session.narrator.say(f"Loading the pipeline from {study.model.path}")
        pool = held.enter_context(_pool(session, where))
        target: Description = call(pool, Describe())
        store = session.start(target)
        lock = lock or held.enter_context(StudyLock(store))
        tracking = held.enter_context(tracked(session.file, store.study, session.narrator))
        # Nobody who looks on is told what an earlier process did last.
        keep_presence(store, pool, "baselines")
        tests = _tests(session, store, pool, target)
        if tests is not None:
            tests.make_stock()
        _search(session, store, lock, pool, target, first, tests.seconds if tests else 0.0)
        pool.changed = partial(keep_presence, store, pool, "export")
        exported = _exporter(session, store, pool, tests).run(study.export)
        if tracking is not None:
            tracking.finish(exported.profile, exported.path)
        return exported


def _pool(session: Session, where: Where = Where()) -> Pool:
    study = session.file.study
    return open_pool(session.file.model_path, study.model, study.generation, where, session.narrator.say)


def _search(
    session: Session,
    store: Store,
    lock: StudyLock,
    pool: Pool,
    target: Description,
    warm_start: Sequence[Policy],
    test_seconds: float,
) -> None:
    """Baselines and search; of the minutes in the budget, what tests and export will take is left over."""
    study, narrator = session.file.study, session.narrator
    optuna_study = open_optuna_study(store, create=True, timed=study.search.prepares)
    cases = [*study.search_cases, *(study.fit_cases if study.search.learned else ())]
    narrator.say(f"Traces for replay, per prompt: {target.trace_size}")
    prepared = usable(study, cases, store, optuna_study, pool, target, narrator)
    minutes, stock_scores = study.budget.minutes, None
    baselines = [baseline for entry in prepared for baseline in entry.made.values()]
    reserve = test_seconds + _export_seconds(baselines, len(study.held_out_cases) + study.timing.max_repeats)
    end = session.started + minutes * 60 - reserve if minutes else float("inf")
    for number, entry in enumerate(prepared):
        searched = {case: entry.made[case] for case in study.search_cases}
        references = {case: baseline.reference(entry.baselines.path(case)) for case, baseline in searched.items()}
        truth = Truth.of([entry.made[case] for case in study.fit_cases]) if study.search.learned else None
        if stock_scores is None:
            stock_scores = _stock_scores(session, entry.baselines, references)
        own = open_optuna_study(store, create=False, preparation=entry.preparation)
        driver = Driver(
            study, store, lock, own, pool, searched, references, narrator, truth, stock_scores, entry.preparation
        )
        _start_from(warm_start, driver, narrator)
        spent = store.equivalents(metric_version=METRIC_VERSION) / len(study.search_cases)
        now = time.monotonic()
        driver.run(now + (end - now) / (len(prepared) - number), share(study, spent, number, len(prepared)))


def _start_from(policies: Sequence[Policy], driver: Driver, narrator: Narrator) -> None:
    """Has policies of another setting tried first, or their like."""
    learned = [policy for policy in policies if policy.gap_weights is not None]
    if driver.plans is not None:
        for policy in learned:
            driver.plans.queue(driver.optuna_study, driver.plans.like(policy))
    elif learned:
        narrator.say("--warm-start: learned weights are left out; with `search: {learned: {}}` they would be tried.")
    thresholds = [policy for policy in policies if policy.gap_weights is None]
    enqueue(driver.optuna_study, first_candidates(thresholds, driver.space))


def _stock_scores(
    session: Session, baselines: Baselines, references: Mapping[Case, Reference]
) -> dict[Case, dict[str, float]]:
    """The scores of the stock clips, of those scores that floors are set on."""
    scores, narrator = session.file.study.floor_scores, session.narrator
    if not any(score.of == "clip" for score in scores):
        return {}
    narrator.stage("Scores of the stock clips", len(references))
    found = {}
    for case, reference in references.items():
        found[case] = baselines.scores(reference, scores)
        told = ", ".join(f"{name.removesuffix('_stock')} {value:.4g}" for name, value in found[case].items())
        narrator.advance(f"{case.label}: {told}")
    return found


def _policies_of(warm_start: str) -> list[Policy]:
    """A profile's policy; or a study's front, the part of it above the floors if there is one.

    Raises:
        CalibrateError: If it is a study that has measured nothing yet.
    """
    if not warm_start.endswith((".yaml", ".yml")):
        return [Profile.load(warm_start).policy]
    with open_session(Path(warm_start), Narrator()) as other:
        entries = pareto_front(other).entries
    if not entries:
        raise CalibrateError(f"--warm-start: {warm_start} has measured no candidate yet; run it first.")
    above = [entry for entry in entries if entry["feasible"]]
    return [Policy.from_dict(entry["policy"]) for entry in above or entries]


def export(
    session: Session, settings: Export, trial: int | None = None, promise: tuple[float, float] | None = None
) -> Exported:
    """Exports from what the search has measured so far, by the given rule, the given trial or the given promise.

    Raises:
        CalibrateError: If a promise is asked for that the study does not test, or beside a trial; or a guarantee would
            have to be tested while another process runs the study.
    """
    if promise is not None:
        require_promise(session.file.study.guarantee, session.file.study.floors, promise)
    if promise is not None and trial is not None:
        raise CalibrateError("--promise: a promise decides which policy is exported; leave out --trial.")
    store = session.find()
    with ExitStack() as held:
        tested = session.file.study.guarantee is not None and trial is None
        if tested:
            # Which policies are tested is decided once, and not while a search goes on.
            held.enter_context(StudyLock(store))
        pool = held.enter_context(_pool(session))
        tests = _tests(session, store, pool, call(pool, Describe())) if tested else None
        return _exporter(session, store, pool, tests).run(settings, trial, promise)


def verify(
    profile_path: str, study: Path | None, model: Path | None, narrator: Narrator, further: Sequence[Case] = ()
) -> dict[str, Any]:
    """Measures a profile again on this machine: held-out prompts, stock, exact and SCOPE in one run.

    The result's figures are those of the held-out cases. `missed_floors` and `told_missed` say which floors of the
    study these miss, without the safety margin, and by how much; None without a study. It says under `evidence` whether
    the profile's own figures still hold (None if other cases were measured), lists every `cases`, further ones
    included, and under `promise` how many of them hold what the profile promises (None if it promises nothing).

    Args:
        profile_path: The profile: a path, or an address on the Hub.
        study: Its model, settings and held-out cases are used.
        model: The pipeline's folder: instead of the study's, or without a study, for the settings and cases that the
            profile records. A profile may come from anyone, so it never says what is imported or opened.
        narrator: Told of every case.
        further: Cases to measure beside the held-out ones.

    Raises:
        CalibrateError: If neither study nor folder is given, or the pipeline cannot be found.
        ProfileError: If the profile is damaged, says nothing about its cases, or belongs to another model or
            other settings.
    """
    profile = Profile.load(profile_path)
    guarantee = profile.evidence.get("guarantee")
    if guarantee is not None:
        promise_in(guarantee)  # what cannot be judged by is said before anything is measured
    if study is not None:
        file = StudyFile(study)
        spec, generation = file.study.model, file.study.generation
        cases, folder, timing = file.study.held_out_cases, model or file.model_path, file.study.timing
        scores, floors = file.study.quality.scores, file.study.floors
    elif model is not None:
        folder = model
        spec, generation, cases, timing = _recorded_setup(profile, profile_path, model)
        # A profile may come from anyone, so functions that it names are not run.
        scores, floors = [], None
    else:
        raise CalibrateError(
            "STUDY.yaml: a profile does not decide what is loaded; name the study that it comes from, "
            f"`{_verify_command(profile, profile_path)}`, or its pipeline's folder with --model."
        )
    Scores(scores)  # what cannot be loaded is said before anything is measured
    with open_pool(folder, spec, generation, Where(), narrator.say) as pool:
        target: Description = call(pool, Describe())
        profile.check_identity(target.identity)
        # What the profile asks for beyond how the model is loaded is set where it is measured.
        loaded = replace(profile.settings, preparation=Preparation())
        if mismatches := loaded.mismatches(target.settings):
            raise ProfileError("settings", f"the cases would run with other settings than calibrated: {mismatches[0]}")
        more = [case for case in further if case not in cases]
        measured = measure_held_out(pool, profile, [*cases, *more], scores, timing, generation.fps, narrator)
    # Rounding was looked at where exact mode is furthest from stock, be that a further case.
    figures = verdict(measured.pairs[: len(cases)], measured.rounding) | {"exact": measured.figures["exact"]}
    listed = [pair.figures() for pair in measured.pairs]
    measured_then = {(case.get("prompt"), case.get("seed")) for case in profile.evidence.get("cases", ())}
    same_cases = {(case.prompt, case.seed) for case in cases} == measured_then
    here = {
        "hardware": target.hardware,
        "versions": target.versions,
        CONTENT: target.model[CONTENT],
    }
    return {
        **figures,
        "missed_floors": None if floors is None else floors.missed(figures),
        "told_missed": None if floors is None else floors.told_missed(figures, margin=False),
        "timing": measured.steadiness.to_dict(),
        "evidence": recheck(profile.evidence, figures, here) if same_cases else None,
        "promise": None if guarantee is None else against_promise(guarantee, listed),
        "cases": [
            case
            | {"further": number >= len(cases)}
            | ({} if guarantee is None else {"missed": promise_in(guarantee).floors.missed_by_prompt(case)})
            for number, case in enumerate(listed)
        ],
    }


def _tests(session: Session, store: Store, pool: Pool, target: Description) -> GuaranteeTests | None:
    """The tests of the study's guarantee, if it asks for one."""
    study = session.file.study
    if study.guarantee is None:
        return None
    return GuaranteeTests(study, study.guarantee, store, pool, target, session.narrator)


def _exporter(session: Session, store: Store, pool: Pool, tests: GuaranteeTests | None) -> Exporter:
    return Exporter(session.file, store, pool, session.narrator, change_maps(store), tests)


def _export_seconds(baselines: list[Baseline], cases: int) -> float:
    """What the held-out measurement will take.

    Stock, exact, at most another exact, and two decodes per case; stock once more, to see what rounding does.
    """
    per_case = sum(
        b.timings.stock_seconds + 2 * b.timings.exact_seconds + 2 * b.timings.decode_seconds for b in baselines
    ) / len(baselines)
    stock = max(b.timings.stock_seconds for b in baselines)
    return _EXPORT_MARGIN * (cases * per_case + stock) + _EXPORT_OVERHEAD_SECONDS


def _recorded_setup(profile: Profile, path: str, model: Path) -> tuple[ModelSpec, Generation, list[Case], Timing]:
    """What the profile itself records of how it was measured, for a folder that the user named.

    Its content decides what is loaded. A profile may say how a model is run, never which: where a folder does not hold
    all that it takes, a study has to name the rest.
    """
    recorded = profile.provenance.get("verify")
    if not isinstance(recorded, dict):
        raise ProfileError("provenance.verify", f"is missing in {path}; name the study as a second argument")
    family = next((family for family in FAMILIES if family.recognises(model)), None)
    if family is None:
        known = " nor ".join(family.holder for family in FAMILIES if family.self_contained)
        others = " or ".join(family.holder for family in FAMILIES if not family.self_contained)
        raise CalibrateError(
            f"--model: {model} is not {known}; check the path, or for {others} name the study: "
            f"`{_verify_command(profile, path)}`."
        )
    try:
        how = {name: recorded["model_spec"][name] for name in family.recordable if name in recorded["model_spec"]}
        spec = family.spec.model_validate({**how, "path": str(model)})
        generation = Generation.model_validate(recorded["generation"])
        cases = [Case.model_validate(case) for case in recorded["cases"]]
        timing = Timing.model_validate(recorded.get("timing", {}))
    except (KeyError, TypeError, ValidationError) as error:
        raise ProfileError("provenance.verify", f"is damaged in {path}; export the profile again") from error
    if not cases:
        raise ProfileError("provenance.verify.cases", f"is empty in {path}; export the profile again")
    if any(case.image_digest for case in cases):
        raise CalibrateError(
            f"{path}: its videos start from images, which a profile does not hold; name the study: "
            f"`{_verify_command(profile, path)}`."
        )
    return spec, generation, cases, timing


def _verify_command(profile: Profile, path: str) -> str:
    """What to type to verify a profile, with its study where a file of that name lies here or in `studies/`."""
    files = (file for folder in (Path(), Path("studies")) for file in sorted(folder.glob("*.yaml")))
    study = next((file for file in files if file.stem == profile.provenance.get("study")), "STUDY.yaml")
    return shlex.join(["scope-calibrate", "verify", path, str(study)])
