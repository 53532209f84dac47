"""The calibration from start to end, without a word about how it is shown."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from calibrate import environment
from calibrate.baseline import Baseline, Baselines
from calibrate.claims import Worker
from calibrate.doctor import refuse_unsound
from calibrate.errors import CalibrateError
from calibrate.export import Exported, Exporter
from calibrate.overview import change_maps, pareto_front
from calibrate.paired import measure_pairs, stock_rounding, verdict
from calibrate.progress import Narrator
from calibrate.recheck import recheck
from calibrate.scores import Scores
from calibrate.search import Search, open_optuna_study
from calibrate.session import Session, open_session
from calibrate.store import CONTENT, Store
from calibrate.study_file import Case, Export, Generation, ModelSpec, StudyFile, Timing
from calibrate.target import Target
from calibrate.timing import repeat_until_steady
from calibrate.warm_start import first_candidates
from scope_runtime import Policy, Profile, ProfileError, Scope, apply_scope

# What the export does beside generating: metrics, clip, plot.
_EXPORT_OVERHEAD_SECONDS = 15.0
# How a model is run, which a profile may say; what is run, its user says.
_RECORDED_HOW = ("torch_dtype", "device", "threads", "flow_shift")
# Timings vary; the export is given this much more time than it is expected to take.
_EXPORT_MARGIN = 1.15


def work(session: Session) -> None:
    """Baselines and search, together with whatever other workers the study has, until the budget is spent.

    Raises:
        CalibrateError: If anything that the user can mend is in the way.
    """
    refuse_unsound(session.file)
    store = session.start()
    with Worker(store, session.file.study.workers.heartbeat) as worker:
        _work(session, store, worker, reserve=lambda _: 0.0)


def run(session: Session, warm_start: Path | None = None) -> Exported:
    """Baselines, search, export: everything that is not there yet. Other workers may help with the same study.

    Args:
        session: The study.
        warm_start: A profile or a study file, of other settings perhaps: the profile's policy and its neighbours are
            tried first, or the policies of the study's front.

    Raises:
        CalibrateError: If anything that the user can mend is in the way.
    """
    study = session.file.study
    refuse_unsound(session.file)
    first = _policies_of(warm_start) if warm_start else ()
    store = session.start()
    with Worker(store, study.workers.heartbeat) as worker:
        _work(
            session,
            store,
            worker,
            lambda baselines: _export_seconds(baselines, len(study.held_out_cases) + study.timing.max_repeats),
            first,
        )
        with worker.claimed("export"):
            return _exporter(session, store).run(study.export)


def _work(
    session: Session,
    store: Store,
    worker: Worker,
    reserve: Callable[[list[Baseline]], float],
    warm_start: Sequence[Policy] = (),
) -> None:
    """Baselines and search; of the minutes in the budget, what `reserve` says of the baselines is left over."""
    study = session.file.study
    optuna_study = open_optuna_study(store, create=True, heartbeat=study.workers.heartbeat)
    baselines = _baselines(session, store, worker)
    search = Search(study, store, optuna_study, session.target, baselines, worker, session.narrator)
    search.enqueue(first_candidates(warm_start, search.space))
    minutes = study.budget.minutes
    search.run(session.started + minutes * 60 - reserve(list(baselines.values())) if minutes else float("inf"))


def _policies_of(warm_start: Path) -> list[Policy]:
    """A profile's policy; or a study's front, the part of it above the floors if there is one.

    Raises:
        CalibrateError: If it is a study that has measured nothing yet.
    """
    if warm_start.suffix not in (".yaml", ".yml"):
        return [Profile.load(warm_start).policy]
    with open_session(warm_start, Narrator()) as other:
        entries = pareto_front(other).entries
    if not entries:
        raise CalibrateError(f"--warm-start: {warm_start} has measured no candidate yet; run it first.")
    above = [entry for entry in entries if entry["feasible"]]
    return [Policy.from_dict(entry["policy"]) for entry in above or entries]


def export(session: Session, settings: Export, trial: int | None = None) -> Exported:
    """Exports from what the search has measured so far, by the given rule or the given trial."""
    return _exporter(session, session.find()).run(settings, trial)


def verify(profile_path: Path, study: Path | None, model: Path | None, narrator: Narrator) -> dict[str, Any]:
    """Measures a profile again on this machine: held-out prompts, stock, exact and SCOPE in one run.

    The result says under `evidence` whether the profile's own figures still hold; None if other cases were measured.

    Args:
        profile_path: The profile.
        study: Its model, settings and held-out cases are used.
        model: The pipeline's folder: instead of the study's, or without a study, for the settings and cases that the
            profile records. A profile may come from anyone, so it never says what is imported or opened.
        narrator: Told of every case.

    Raises:
        CalibrateError: If neither study nor folder is given, or the pipeline cannot be found.
        ProfileError: If the profile is damaged, says nothing about its cases, or belongs to another model or
            other settings.
    """
    profile = Profile.load(profile_path)
    if study is not None:
        file = StudyFile(study)
        spec, generation = file.study.model, file.study.generation
        cases, folder, timing = file.study.held_out_cases, model or file.model_path, file.study.timing
        scores = Scores(file.study.quality.scores)
    elif model is not None:
        folder = model
        spec, generation, cases, timing = _recorded_setup(profile, profile_path, model)
        # A profile may come from anyone, so functions that it names are not run.
        scores = Scores()
    else:
        raise CalibrateError(
            "STUDY.yaml: a profile does not decide what is loaded; name the study that it comes from, "
            f"`{_verify_command(profile, profile_path)}`, or its pipeline's folder with --model."
        )
    target = Target.load(folder, spec, generation)
    profile.check_model(target.pipe)
    if mismatches := profile.settings.mismatches(target.settings):
        raise ProfileError("settings", f"the cases would run with other settings than calibrated: {mismatches[0]}")
    narrator.stage("Held-out prompts: stock, exact, SCOPE", len(cases))

    def attach() -> Scope:
        return apply_scope(target.pipe, profile, on_mismatch="raise")

    pairs, latents = [], {}
    for pair, clips in measure_pairs(target, cases, attach, scores):
        narrator.advance(str(pair))
        pairs.append(pair)
        latents[pair.case] = clips.stock_latents
    rounding = stock_rounding(target, pairs, latents, narrator)
    pairs, steadiness = repeat_until_steady(target, pairs, attach, timing, narrator)
    figures = verdict(pairs, rounding)
    measured_then = {(case.get("prompt"), case.get("seed")) for case in profile.evidence.get("cases", ())}
    same_cases = {(case.prompt, case.seed) for case in cases} == measured_then
    here = {
        "hardware": environment.hardware(target.device),
        "versions": environment.versions(),
        CONTENT: target.model[CONTENT],
    }
    return {
        **figures,
        "timing": steadiness.to_dict(),
        "evidence": recheck(profile.evidence, figures, here) if same_cases else None,
    }


def _baselines(session: Session, store: Store, worker: Worker) -> dict[Case, Baseline]:
    cases = session.file.study.search_cases
    maker = Baselines(session.target, store, worker, session.file.study.cache_folder, session.narrator.say)
    session.narrator.say(f"Traces for replay, per prompt: {session.target.trace_size()}")
    session.narrator.stage("Baselines: stock and exact", len(cases))
    made = {}
    for baseline, reused in maker.all(cases):
        made[baseline.case] = baseline
        timings = baseline.timings
        session.narrator.advance(
            f"{baseline.case.label}: stock {timings.stock_seconds:.1f} s, exact {timings.exact_seconds:.1f} s"
            + (" (kept from before)" if reused else "")
        )
    return {case: made[case] for case in cases}


def _exporter(session: Session, store: Store) -> Exporter:
    def load() -> Target:
        # The records know which model was measured; another one in its folder must not get its profile.
        session.start()
        return session.target

    return Exporter(session.file, store, load, session.narrator, change_maps(store))


def _export_seconds(baselines: list[Baseline], cases: int) -> float:
    """What the held-out measurement will take.

    Stock, exact, at most another exact, and two decodes per case; stock once more, to see what rounding does.
    """
    per_case = sum(
        b.timings.stock_seconds + 2 * b.timings.exact_seconds + 2 * b.timings.decode_seconds for b in baselines
    ) / len(baselines)
    stock = max(b.timings.stock_seconds for b in baselines)
    return _EXPORT_MARGIN * (cases * per_case + stock) + _EXPORT_OVERHEAD_SECONDS


def _recorded_setup(profile: Profile, path: Path, model: Path) -> tuple[ModelSpec, Generation, list[Case], Timing]:
    """What the profile itself records of how it was measured, for a folder that the user named.

    Its content decides what is loaded: a diffusers folder holds all that it takes. A checkout of MAGI-1 is run with a
    configuration and weights elsewhere, which only a study names.
    """
    recorded = profile.provenance.get("verify")
    if not isinstance(recorded, dict):
        raise ProfileError("provenance.verify", f"is missing in {path}; name the study as a second argument")
    if not (model / "model_index.json").is_file():
        raise CalibrateError(
            f"--model: {model} is not a diffusers pipeline (it has no model_index.json); check the path, or for a "
            f"checkout of MAGI-1 name the study: `{_verify_command(profile, path)}`."
        )
    try:
        how = {name: recorded["model_spec"][name] for name in _RECORDED_HOW if name in recorded["model_spec"]}
        spec = ModelSpec.model_validate({**how, "path": str(model)})
        generation = Generation.model_validate(recorded["generation"])
        cases = [Case.model_validate(case) for case in recorded["cases"]]
        timing = Timing.model_validate(recorded.get("timing", {}))
    except (KeyError, TypeError, ValidationError) as error:
        raise ProfileError("provenance.verify", f"is damaged in {path}; export the profile again") from error
    if not cases:
        raise ProfileError("provenance.verify.cases", f"is empty in {path}; export the profile again")
    return spec, generation, cases, timing


def _verify_command(profile: Profile, path: Path) -> str:
    """What to type to verify a profile, with its study where a file of that name lies here or in `studies/`."""
    files = (file for folder in (Path(), Path("studies")) for file in sorted(folder.glob("*.yaml")))
    study = next((file for file in files if file.stem == profile.provenance.get("study")), "STUDY.yaml")
    return shlex.join(["scope-calibrate", "verify", str(path), str(study)])
