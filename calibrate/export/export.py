"""From the best candidate of a search to a profile with evidence from prompts that the search never saw."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from calibrate.errors import CalibrateError
from calibrate.export.guarantee import GuaranteeTests
from calibrate.export.held_out import HeldOut, measure_held_out
from calibrate.export.plots import front_plot
from calibrate.export.recheck import against_promise
from calibrate.files import write_atomically
from calibrate.measure.clips import ClipShelf
from calibrate.measure.describe import Describe, Description
from calibrate.measure.detail import describe
from calibrate.measure.paired import PairedCase, spread
from calibrate.pool.pool import Pool, call
from calibrate.progress import Narrator
from calibrate.quality.metrics import METRIC_VERSION, psnr_meaning
from calibrate.quality.scores import Scores
from calibrate.report.content import of_study
from calibrate.report.page import page
from calibrate.results.guarantee import Promise, Tried, cases_needed, passed_in_turn
from calibrate.results.promise_table import PromiseTable
from calibrate.results.promises import evidence_of
from calibrate.results.result import Result, by_rule, change_map_name, find, load_results, of_metric, pick
from calibrate.spec.running import Export
from calibrate.store import CONTENT, Generation, Store, portable_url, refuse_changes
from calibrate.study.outputs import companions, require_profile_path
from calibrate.study.promised import recorded_promises
from calibrate.study.study_file import StudyFile
from scope_runtime import Policy, Profile, ProfileError, Settings
from scope_runtime.evidence import REQUIRED_EVIDENCE


@dataclass(frozen=True)
class Exported:
    """What an export wrote.

    Attributes:
        profile: The profile.
        path: Where it is.
        clip: The comparison clip of the worst held-out prompt.
        plot: The plot of the front.
        report: All of it on one page.
        missed: Floors that the held-out prompts miss, without the safety margin, and by how much; empty when all hold.
        told_missed: The same in words.
        promises: What can be promised, where the study asks for a guarantee.
    """

    profile: Profile
    path: Path
    clip: Path
    plot: Path
    report: Path
    missed: dict[str, float]
    told_missed: list[str]
    promises: PromiseTable | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON form; `promise` is how the held-out prompts fare by what the profile promises."""
        guarantee = self.profile.evidence.get("guarantee")
        return {
            "profile": str(self.path),
            "clip": str(self.clip),
            "plot": str(self.plot),
            "report": str(self.report),
            "missed_floors": self.missed,
            "told_missed": self.told_missed,
            "evidence": dict(self.profile.evidence),
            "promises": None if self.promises is None else self.promises.to_dict(),
            "promise": None if guarantee is None else against_promise(guarantee, self.profile.evidence["cases"]),
        }


class NothingPromised(CalibrateError):
    """No policy passed for what was to be promised; `table` says what can be."""

    def __init__(self, message: str, table: PromiseTable) -> None:
        super().__init__(message)
        self.table = table


@dataclass(frozen=True)
class _Promised:
    """A promise, and the policy that is exported with it.

    Attributes:
        promise: At the confidence that it was tested at.
        picked: One that passed.
        corrected: Whether it was picked after looking.
    """

    promise: Promise
    picked: Tried
    corrected: bool


class Exporter:
    """Exports from one study."""

    def __init__(
        self,
        file: StudyFile,
        store: Store,
        pool: Pool,
        narrator: Narrator,
        change_maps: dict[str, Any],
        tests: GuaranteeTests | None = None,
    ) -> None:
        """Prepares an export.

        Args:
            file: The study file.
            store: The trials to choose from, and where the held-out runs and the profile are recorded.
            pool: Where the held-out cases are measured; its target is loaded only once a policy has been picked.
            narrator: Told of every case.
            change_maps: How well each indicator's change map fits, for the evidence.
            tests: Of the study's guarantee, if it asks for one.
        """
        self.file = file
        self.store = store
        self.results = load_results(store)
        self.change_maps = change_maps
        self.pool = pool
        self.narrator = narrator
        self.tests = tests

    def run(self, export: Export, trial: int | None = None, promise: tuple[float, float] | None = None) -> Exported:
        """Picks a policy, measures it on the held-out cases and writes profile, clip, plot and report.

        The held-out cases judge the pick; they never choose it. If they miss a floor, the evidence and the result say
        so, and the remedy is another search with a larger safety margin.

        Args:
            export: Rule and path.
            trial: Whose policy to take instead of the rule's; nothing is promised of it that it has not passed for.
            promise: A floor on the PSNR of every prompt (dB) and a share, from the promise table, in place of the
                study's own wish; see `calibrate.results.promises.require_promise`.

        Raises:
            CalibrateError: If no candidate qualifies, there is no such trial, the files cannot be written, or the
                profile cannot be applied to the pipeline that it was calibrated on. Nothing is written then.
        """
        study = self.file.study
        path = Path(export.path) if export.path else study.profile_path
        require_profile_path(self.file, path)
        table = promised = None
        if trial is not None:
            rule, picked = "trial", find(self.results, trial)
            table = recorded_promises(self.store, self.file.study)
            promised = next((_wished(table, t) for t in table.passed if t.trial == trial), None) if table else None
        elif self.tests is not None:
            table = self.tests.run(self.results)
            promised = self._promised(table, export, promise)
            rule, picked = str(export.rule), find(self.results, promised.picked.trial)
        else:
            rule, picked = str(export.rule), self._pick(export)
        Scores(study.quality.scores)  # what cannot be loaded is said before anything is measured
        target = self._target()
        draft = _reread(_draft(target, picked, len(study.held_out_cases)))
        try:
            measured = measure_held_out(
                self.pool, draft, study.held_out_cases, study.quality.scores, study.timing, study.generation.fps,
                self.narrator, lambda pair: self._record(target, picked, pair),
            )  # fmt: skip
        except ProfileError as error:
            raise CalibrateError(
                f"export: the profile cannot be applied to the pipeline that it was calibrated on ({error}); nothing "
                "was written."
            ) from error
        promise_kept = None if table is None or promised is None else _evidence(table, promised)
        profile, missed = self._profile(target, draft, picked, measured, rule, promise_kept)
        return replace(self._write(profile, path, picked, measured.worst_clip, missed), promises=table)

    def _target(self) -> Description:
        """What the pool has loaded; the records know which model was measured, and another must not get its profile."""
        target: Description = call(self.pool, Describe())
        refuse_changes(self.store.study, self.file.study.fixed_parts(), target.model)
        return target

    def _pick(self, export: Export) -> Result:
        comparable = of_metric(self.results)
        if self.results and not comparable:
            version = self.results[-1].metric_version
            raise CalibrateError(
                f"floors: all {len(self.results)} candidates were measured by an earlier program, whose PSNR is the "
                f"{psnr_meaning(version)}; measure on with `scope-calibrate run`, or name one of them with --trial."
            )
        return pick(comparable, self.file.study.floors, export.rule, export.min_speedup)

    def _promised(self, table: PromiseTable, export: Export, asked: tuple[float, float] | None) -> _Promised:
        """The policy that the rule picks among those that passed; with the confidence they all hold at the same time.

        Raises:
            NothingPromised: If none passed, or none that is fast enough.
        """
        promise, passed, corrected = table.wish, table.passed, not table.declared
        cell = table.cell(*asked) if asked else None
        if cell is not None:
            promise, corrected = cell.corrected, True
            passed = passed_in_turn(promise, table.sequence)
        if not passed:
            raise NothingPromised(_nothing_passed(table, promise, asked), table)
        fast = [t for t in passed if (t.speed or 0.0) >= (export.min_speedup or 0.0)]
        if not fast:
            raise NothingPromised(
                f"export.min_speedup: no policy that passed reaches {export.min_speedup:g}x; the fastest (trial "
                f"{passed[-1].trial}) gives {passed[-1].speed:.2f}x; lower min_speedup, the share or the floors.",
                table,
            )
        best = by_rule([find(self.results, entry.trial) for entry in fast], export.rule)
        return _Promised(promise, next(entry for entry in fast if entry.trial == best.trial), corrected)

    def _profile(
        self,
        target: Description,
        draft: Profile,
        picked: Result,
        measured: HeldOut,
        rule: str,
        guarantee: dict[str, Any] | None,
    ) -> tuple[Profile, dict[str, float]]:
        study = self.file.study
        figures, pairs = measured.figures, measured.pairs
        missed = study.floors.missed(figures)
        evidence = {
            **figures,
            "floors": study.floors.model_dump(exclude_none=True),
            "missed_floors": missed,
            "metrics": spread(pairs),
            "timing": measured.steadiness.to_dict(),
            "cases": [pair.figures() for pair in pairs],
            "change_map": self.change_maps.get(change_map_name(picked.policy["indicator"], picked.preparation)),
            "search": {
                "n": picked.cases,
                "speedup_evaluations": picked.speedup_evaluations,
                **({"speedup_denoise": picked.speedup_denoise} if picked.paired else {}),
                "metric_version": picked.metric_version,
                **picked.figures,
            },
            "hardware": target.hardware,
            "versions": target.versions,
            CONTENT: target.model[CONTENT],
            "measured": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        if guarantee is not None:
            evidence["guarantee"] = guarantee
        provenance = {
            "study": study.name,
            "study_digest": self.store.study.fixed_digest,
            "trial": picked.trial,
            "rule": rule,
            "storage": portable_url(study.storage_url),
            "verify": {
                "model_spec": study.model.model_dump(mode="json", exclude={"path"}),
                "generation": study.generation.model_dump(mode="json"),
                "cases": [case.content for case in study.held_out_cases],
                "timing": study.timing.model_dump(mode="json"),
            },
        }
        return _reread(replace(draft, evidence=evidence, provenance=provenance)), missed

    def _write(
        self, profile: Profile, path: Path, picked: Result, clip_bytes: bytes, missed: dict[str, float]
    ) -> Exported:
        study = self.file.study
        beside = companions(path)
        alike = of_metric(self.results, picked.metric_version)
        plot_bytes = front_plot(alike, picked, study.floors, f"Study {study.name}")
        write_atomically(beside.clip, clip_bytes)
        # The dashboard opens no path that its database names, so it gets a clip of its own.
        case = profile.evidence["worst_prompt"]
        shelf = ClipShelf(study.clip_folder, study.clip_megabytes)
        shelf.keep(picked.policy, case["prompt"], case["seed"], lambda: clip_bytes, picked.preparation)
        write_atomically(beside.plot, plot_bytes)
        write_atomically(beside.report, page(of_study(self.store.storage, study, path, profile)))
        # The profile comes last: where it is, the rest is too.
        profile.save(path)
        self.store.add_profile(picked.trial, str(profile.provenance["rule"]), str(path), profile.to_dict())
        told = study.floors.told_missed(dict(profile.evidence), margin=False)
        return Exported(profile, path, *beside, missed, told)

    def _record(self, target: Description, picked: Result, pair: PairedCase) -> None:
        shared = {
            "trial_number": picked.trial,
            "environment_id": self.store.environment(target.hardware, target.versions),
            "prompt": pair.case.prompt,
            "seed": pair.case.seed,
            "settings": target.settings.to_dict(),
            "stock_evaluations": pair.scope_report.stock_evaluations,
            "stock_seconds_denoise": pair.stock_seconds,
            "state": "complete",
            "started": pair.started,
            "finished": pair.finished,
        }
        self.store.add(
            Generation(
                kind="held_out_stock",
                evaluations=pair.scope_report.stock_evaluations,
                seconds_denoise=pair.stock_seconds,
                seconds_decode=pair.stock_decode_seconds,
                seconds_end_to_end=pair.stock_end_to_end,
                **shared,
            )
        )
        self.store.add(
            Generation(
                kind="held_out_exact",
                evaluations=pair.exact_report.evaluations,
                seconds_denoise=pair.exact_seconds,
                metrics={"max_abs_diff": pair.max_abs_diff},
                **shared,
            )
        )
        self.store.add(
            Generation(
                kind="held_out_scope",
                policy=picked.policy,
                evaluations=pair.scope_report.evaluations,
                seconds_denoise=pair.scope_seconds,
                seconds_decode=pair.scope_decode_seconds,
                seconds_end_to_end=pair.scope_end_to_end,
                metrics=pair.quality.to_dict(),
                metric_version=METRIC_VERSION,
                **{**shared, "settings": _settings(target, picked).to_dict()},
            ),
            describe(pair.scope_report, pair.errors, pair.blocks),
        )


def _wished(table: PromiseTable, picked: Tried) -> _Promised:
    return _Promised(table.wish, picked, not table.declared)


def _evidence(table: PromiseTable, promised: _Promised) -> dict[str, Any]:
    cells = table.corrected_for if promised.corrected else None
    return evidence_of(promised.promise, promised.picked, table.cases, attempt=table.attempt, cells=cells)


def _nothing_passed(table: PromiseTable, promise: Promise, asked: tuple[float, float] | None) -> str:
    """That nothing can be promised as it was asked for, and what can."""
    if promise.test(len(table.cases)) is None:
        first = (
            f"its confidence, corrected for {table.corrected_for} promises, takes "
            f"{cases_needed(promise.share, promise.confidence)} guarantee cases"
        )
    elif not table.sequence:
        first = "no policy was tested"
    else:
        careful = table.sequence[0]
        first = f"the most careful policy that was tested (trial {careful.trial}) {promise.told_failure(careful)}"
    field = f"--promise {asked[0]:g},{asked[1]:g}" if asked else "guarantee"
    return (
        f"{field}: no policy passed for a share of {promise.share:g} with confidence {promise.confidence:.4g}: "
        f"{first}; {table.told_nearest()}; nothing was written."
    )


def _draft(target: Description, picked: Result, cases: int) -> Profile:
    """The profile before its evidence is measured on so many cases."""
    unmeasured = dict.fromkeys(REQUIRED_EVIDENCE, 0) | {"n": cases}
    return Profile(Policy.from_dict(picked.policy), _settings(target, picked), target.identity, unmeasured)


def _settings(target: Description, picked: Result) -> Settings:
    """What a candidate ran with, as a profile asks for it."""
    return replace(target.settings, preparation=picked.set_up)


def _reread(profile: Profile) -> Profile:
    """The profile as production reads it from its file.

    Raises:
        CalibrateError: If it would not be read.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "profile.json"
        try:
            profile.save(path)
            return Profile.load(path)
        except (ProfileError, ValueError) as error:
            raise CalibrateError(
                f"export: the profile could not be read again ({error}); nothing was written."
            ) from error
