"""From the best candidate of a search to a profile with evidence from prompts that the search never saw."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from calibrate import environment
from calibrate.clips import ClipShelf
from calibrate.detail import describe
from calibrate.errors import CalibrateError
from calibrate.files import write_atomically
from calibrate.outputs import companions, require_profile_path
from calibrate.paired import Clips, PairedCase, measure_pairs, spread, stock_rounding, verdict
from calibrate.pictures import comparison_clip, front_plot
from calibrate.progress import Narrator
from calibrate.quality import METRIC_VERSION, psnr_meaning
from calibrate.results import Result, find, load_results, of_metric, pick
from calibrate.scores import Scores
from calibrate.store import CONTENT, Generation, Store, portable_url
from calibrate.study_file import Export, StudyFile
from calibrate.target import Target
from calibrate.timing import Steadiness, repeat_until_steady
from scope_runtime import ModelIdentity, Policy, Profile, ProfileError, Scope, apply_scope
from scope_runtime.evidence import REQUIRED_EVIDENCE


@dataclass(frozen=True)
class Exported:
    """What an export wrote.

    Attributes:
        profile: The profile.
        path: Where it is.
        clip: The comparison clip of the worst held-out prompt.
        plot: The plot of the front.
        missed: Floors that the held-out prompts miss, without the safety margin, and by how much; empty when all hold.
        told_missed: The same in words.
    """

    profile: Profile
    path: Path
    clip: Path
    plot: Path
    missed: dict[str, float]
    told_missed: list[str]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON form."""
        return {
            "profile": str(self.path),
            "clip": str(self.clip),
            "plot": str(self.plot),
            "missed_floors": self.missed,
            "told_missed": self.told_missed,
            "evidence": dict(self.profile.evidence),
        }


class Exporter:
    """Exports from one study."""

    def __init__(
        self,
        file: StudyFile,
        store: Store,
        load: Callable[[], Target],
        narrator: Narrator,
        change_maps: dict[str, Any],
    ) -> None:
        """Prepares an export.

        Args:
            file: The study file.
            store: The trials to choose from, and where the held-out runs and the profile are recorded.
            load: Gives the pipeline; called only once a policy has been picked.
            narrator: Told of every case.
            change_maps: How well each indicator's change map fits, for the evidence.
        """
        self.file = file
        self.store = store
        self.results = load_results(store)
        self.change_maps = change_maps
        self.load = load
        self.narrator = narrator

    def run(self, export: Export, trial: int | None = None) -> Exported:
        """Picks a policy, measures it on the held-out cases and writes profile, clip and plot.

        The held-out cases judge the pick; they never choose it. If they miss a floor, the evidence and the result say
        so, and the remedy is another search with a larger safety margin.

        Args:
            export: Rule and path.
            trial: Whose policy to take instead of the rule's.

        Raises:
            CalibrateError: If no candidate qualifies, there is no such trial, the files cannot be written, or the
                profile cannot be applied to the pipeline that it was calibrated on. Nothing is written then.
        """
        study = self.file.study
        path = Path(export.path) if export.path else study.profile_path
        require_profile_path(self.file, path)
        if trial is None:
            rule, picked = str(export.rule), self._pick(export)
        else:
            rule, picked = "trial", find(self.results, trial)
        scores = Scores(study.quality.scores)
        target = self.load()
        self.narrator.stage("Held-out prompts: stock, exact, SCOPE", len(study.held_out_cases))
        draft = _reread(_draft(target, picked, len(study.held_out_cases)))
        pairs: list[PairedCase] = []
        latents = {}

        def attach() -> Scope:
            # As production does it, so that what is measured is what the profile will do.
            return apply_scope(target.pipe, draft, on_mismatch="raise")

        for pair, clips in _applied(measure_pairs(target, study.held_out_cases, attach, scores)):
            self._record(target, picked, pair)
            self.narrator.advance(str(pair))
            pairs.append(pair)
            latents[pair.case] = clips.stock_latents
            if pair is min(pairs, key=lambda p: p.quality.psnr_db):
                worst_clips = clips
        rounding = stock_rounding(target, pairs, latents, self.narrator)
        pairs, steadiness = repeat_until_steady(target, pairs, attach, study.timing, self.narrator)
        profile, missed = self._profile(target, draft, picked, pairs, rounding, steadiness, rule)
        return self._write(profile, path, picked, worst_clips, missed)

    def _pick(self, export: Export) -> Result:
        comparable = of_metric(self.results)
        if self.results and not comparable:
            version = self.results[-1].metric_version
            raise CalibrateError(
                f"floors: all {len(self.results)} candidates were measured by an earlier program, whose PSNR is the "
                f"{psnr_meaning(version)}; measure on with `scope-calibrate run`, or name one of them with --trial."
            )
        return pick(comparable, self.file.study.floors, export.rule, export.min_speedup)

    def _profile(
        self,
        target: Target,
        draft: Profile,
        picked: Result,
        pairs: Sequence[PairedCase],
        rounding: float | None,
        steadiness: Steadiness,
        rule: str,
    ) -> tuple[Profile, dict[str, float]]:
        study = self.file.study
        figures = verdict(pairs, rounding)
        missed = {name: by for name, by in study.floors.shortfalls(figures, margin=False).items() if by > 0}
        evidence = {
            **figures,
            "floors": study.floors.model_dump(exclude_none=True),
            "missed_floors": missed,
            "metrics": spread(pairs),
            "timing": steadiness.to_dict(),
            "cases": [pair.figures() for pair in pairs],
            "change_map": self.change_maps.get(picked.policy["indicator"]),
            "search": {
                "n": picked.cases,
                "speedup_evaluations": picked.speedup_evaluations,
                "metric_version": picked.metric_version,
                **picked.figures,
            },
            "hardware": environment.hardware(target.device),
            "versions": environment.versions(),
            CONTENT: target.model[CONTENT],
            "measured": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        provenance = {
            "study": study.name,
            "study_digest": self.store.study.fixed_digest,
            "trial": picked.trial,
            "rule": rule,
            "storage": portable_url(study.storage_url),
            "verify": {
                "model_spec": study.model.model_dump(mode="json", exclude={"path"}),
                "generation": study.generation.model_dump(mode="json"),
                "cases": [case.model_dump(mode="json") for case in study.held_out_cases],
                "timing": study.timing.model_dump(mode="json"),
            },
        }
        return _reread(replace(draft, evidence=evidence, provenance=provenance)), missed

    def _write(self, profile: Profile, path: Path, picked: Result, worst: Clips, missed: dict[str, float]) -> Exported:
        study = self.file.study
        clip, plot = companions(path)
        clip_bytes = comparison_clip(worst.stock, worst.scope, study.generation.fps)
        alike = of_metric(self.results, picked.metric_version)
        plot_bytes = front_plot(alike, picked, study.floors, f"Study {study.name}")
        write_atomically(clip, clip_bytes)
        # The dashboard opens no path that its database names, so it gets a clip of its own.
        case = profile.evidence["worst_prompt"]
        shelf = ClipShelf(study.clip_folder, study.clip_megabytes)
        shelf.keep(picked.policy, case["prompt"], case["seed"], lambda: clip_bytes)
        write_atomically(plot, plot_bytes)
        # The profile comes last: where it is, the rest is too.
        profile.save(path)
        self.store.add_profile(picked.trial, str(profile.provenance["rule"]), str(path), profile.to_dict())
        told = study.floors.told_missed(dict(profile.evidence), margin=False)
        return Exported(profile, path, clip, plot, missed, told)

    def _record(self, target: Target, picked: Result, pair: PairedCase) -> None:
        shared = {
            "trial_number": picked.trial,
            "environment_id": environment.record(self.store, target.device),
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
                **shared,
            ),
            describe(pair.scope_report, pair.errors, pair.blocks),
        )


def _draft(target: Target, picked: Result, cases: int) -> Profile:
    """The profile before its evidence is measured on so many cases."""
    unmeasured = dict.fromkeys(REQUIRED_EVIDENCE, 0) | {"n": cases}
    return Profile(Policy.from_dict(picked.policy), target.settings, ModelIdentity.of(target.pipe), unmeasured)


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


def _applied(pairs: Iterator[tuple[PairedCase, Clips]]) -> Iterator[tuple[PairedCase, Clips]]:
    """The pairs, with one sentence in place of a refusal by the runtime."""
    try:
        yield from pairs
    except ProfileError as error:
        raise CalibrateError(
            f"export: the profile cannot be applied to the pipeline that it was calibrated on ({error}); nothing was "
            "written."
        ) from error
